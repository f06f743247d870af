"""What becomes of an episode's row: written, counted, shown, and looked at for a reason to stop."""

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
_PAUSE_S = 5.0  # while a row cannot be kept
_PATIENCE_S = 600.0

Row = tuple[Trial, EncodedEpisode]


class ProgressListener(Protocol):
    """Whoever shows the run to a person."""

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """An episode was written."""

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """A moment has passed; seconds that the policies have computed and env actors alive."""


class Recorder:
    """Keeps a run's rows."""

    def __init__(self, config: Config, folder: RunFolder, tally: Tally, listener: ProgressListener) -> None:
        self._stop_when, self._folder, self._tally, self._listener = config.stop_when, folder, tally, listener
        self._errors = ErrorBook(config.retry.max_error_share)
        self._rows = 0  # of this run, which may go on where another stopped

    def keep(self, rows: Sequence[Row], stopping: Callable[[], bool]) -> Stop | None:
        """Returns why the run must or may stop after these rows, if it must or may.

        Waits while there is no room for one, unless `stopping`; raises RunStoppedError if one cannot be kept.
        """
        stop = None
        for group in self._written(rows, stopping):
            for trial, episode in group:
                found = self._count(trial, episode)
                stop = stop or found
        return stop

    def _written(self, rows: Sequence[Row], stopping: Callable[[], bool]) -> Iterator[Sequence[Row]]:
        """The rows as they are written: together, for then they share syncs, but one by one where room is scarce."""
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
            return Stop(reason)
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
