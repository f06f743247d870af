"""Rows of finished trials: written, counted, shown, and checked against the stop rules."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from wpray.config import Config
from wpray.errors import PausedError
from wpray.orchestration.stop_rules import ErrorBook, Stop, decided
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.types import Trial

_LOG = logging.getLogger(__name__)
_PAUSE_S = 5.0  # between attempts to write a row
_PATIENCE_S = 600.0

TrialRow = tuple[Trial, EncodedEpisode]


class ProgressListener(Protocol):
    """Display of a run."""

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Show an episode that was written."""

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """Show the seconds that the policies have computed, and the number of env actors."""


class RowSink:
    """Sink of a run's rows, which writes, counts and shows them."""

    def __init__(self, config: Config, folder: RunFolder, tally: Tally, listener: ProgressListener) -> None:
        self._stop_when, self._folder, self._tally, self._listener = config.stop_when, folder, tally, listener
        self._errors = ErrorBook(config.retry.max_error_share)
        self._rows = 0  # written by this process, without those of earlier sessions

    def keep(self, rows: Sequence[TrialRow], stopping: Callable[[], bool]) -> Stop | None:
        """Write and count rows; return why the run must or may stop after them, or None.

        Waits while there is no room for one, unless `stopping`. Raises RunStoppedError if one cannot be kept.
        """
        stop = None
        for group in self._written(rows, stopping):
            for trial, episode in group:
                found = self._count(trial, episode)
                stop = stop or found
        return stop

    def _written(self, rows: Sequence[TrialRow], stopping: Callable[[], bool]) -> Iterator[Sequence[TrialRow]]:
        """Write the rows and yield them in groups.

        They are written together because then they share syncs, but one by one where room is scarce.
        """
        try:
            self._folder.write_episodes(*(episode for _, episode in rows))
        except PausedError:
            for row in rows:
                self._write_when_possible(row[1], stopping)
                yield [row]
        else:
            yield rows

    def _count(self, trial: Trial, episode: EncodedEpisode) -> Stop | None:
        self._rows += 1
        self._tally.add(trial.key, episode.status, episode.num_steps, episode.retried)
        self._listener.on_episode(trial, episode)
        if episode.error is not None:
            self._errors.add_row(episode.error)
        reason = self._errors.reason_to_stop(self._rows)
        if reason is not None:
            return Stop(reason, of_this_run=True)
        enough = decided(lambda: self._tally.balanced_rate, self._stop_when)
        return None if enough is None else Stop(enough, intended=True)

    def _write_when_possible(self, episode: EncodedEpisode, stopping: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._folder.write_episodes(episode)
                return
            except PausedError as error:
                if stopping() or time.monotonic() > deadline:
                    raise
                _LOG.error("%s; waiting (Ctrl-C stops, keeping what is finished)", error)
                time.sleep(_PAUSE_S)
