"""Progress of a run for a caller in Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from wpray.errors import wrapping_errors
from wpray.orchestration.row_sink import ProgressListener
from wpray.results.encode import EncodedEpisode
from wpray.results.statistics import Rate
from wpray.results.summary import Tally
from wpray.types import EpisodeStatus, Task, Trial

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeDone:
    """An episode that was written, and how far the run is."""

    task: Task
    trial: int
    status: EpisodeStatus
    num_steps: int
    done: int  # episodes with a row
    total: int
    overall: Rate  # success rate so far, with its interval


class _CallbackError(Exception):
    """Error of a caller's function."""


class _Notifier:
    """Tells another listener and a caller's function of every episode."""

    def __init__(self, first: ProgressListener, tally: Tally, call: Callable[[EpisodeDone], None]) -> None:
        self._first, self._tally, self._call = first, tally, call
        self._has_failed = False

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Pass an episode on. What the function raises is logged once."""
        self._first.on_episode(trial, episode)
        tally = self._tally
        counts = (tally.done, tally.total, tally.overall)
        done = EpisodeDone(trial.task, trial.init_state, episode.status, episode.num_steps, *counts)
        try:
            with wrapping_errors(_CallbackError):
                self._call(done)
        except _CallbackError as error:
            if not self._has_failed:
                cause = error.__cause__
                _LOG.warning("on_episode failed, the run goes on: %s: %s", type(cause).__name__, cause)
            self._has_failed = True

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """Pass on that a moment has passed."""
        self._first.on_progress(policy_busy_s, num_workers)


def notifying(first: ProgressListener, tally: Tally, call: Callable[[EpisodeDone], None] | None) -> ProgressListener:
    """Return a listener that tells `first`, and `call` if there is one."""
    return first if call is None else _Notifier(first, tally, call)
