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


class Listeners:
    """Several listeners as one, notified in order."""

    def __init__(self, *listeners: ProgressListener | None) -> None:
        self._listeners = [listener for listener in listeners if listener is not None]

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Pass an episode on."""
        for listener in self._listeners:
            listener.on_episode(trial, episode)

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """Pass the progress on."""
        for listener in self._listeners:
            listener.on_progress(policy_busy_s, num_workers)


class EpisodeCallback:
    """Listener that calls a caller's function after every episode."""

    def __init__(self, tally: Tally, call: Callable[[EpisodeDone], None]) -> None:
        self._tally, self._call = tally, call
        self._has_failed = False

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Call the function. What it raises is logged once."""
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
        """Ignore the progress between episodes."""
