"""The driver: hands trials to actors, writes what comes back, replaces what dies, stops when it should."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from wpray.actors import RunContext, lost_row
from wpray.pool import Event, Finished, Lost, Pool, Ready
from wpray.results.encode import EncodedEpisode
from wpray.results.writer import DiskFullError, RunFolder
from wpray.scheduler import Assignment, Scheduler, too_many_errors
from wpray.types import Trial

_LOG = logging.getLogger(__name__)
_TICK_S = 0.25
_DISK_PAUSE_S = 5.0
_DISK_PATIENCE_S = 600.0
_FAILED_STARTS = 3  # env actors that never became ready, before the machine is to blame


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended before its last trial."""

    reason: str
    at_once: bool = False  # leave the trials in hand


class Driver:
    """Runs trials to their rows. `on_episode` and `on_tick` are for whoever watches."""

    def __init__(
        self,
        context: RunContext,
        pool: Pool,
        folder: RunFolder,
        on_episode: Callable[[Trial, EncodedEpisode], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._context, self._pool, self._folder = context, pool, folder
        self._on_episode, self._on_tick = on_episode, on_tick
        self._errors: Counter[str] = Counter()
        self._policy_failures: Counter[tuple[str, int, int]] = Counter()
        self._finished = 0
        self._failed_starts = 0
        self._size = 0
        self.stop: Stop | None = None

    def request_stop(self, stop: Stop) -> None:
        """Ends the run: trials in hand are finished first, unless `stop.at_once`."""
        self.stop = stop if self.stop is None or stop.at_once else self.stop

    def run(self, scheduler: Scheduler, num_workers: int) -> None:
        """Runs every trial of `scheduler` on `num_workers` env actors; returns when all have rows, or on a stop."""
        self._scheduler, self._size = scheduler, num_workers
        for _ in range(num_workers):
            self._pool.start_worker()
        while not scheduler.finished:
            event = self._pool.next_event(_TICK_S)
            if event is not None:
                self._handle(event)
            if self.stop is not None:
                scheduler.stop_taking()
                if self.stop.at_once:
                    return
            self._on_tick()

    def _handle(self, event: Event) -> None:
        match event:
            case Ready(worker):
                self._failed_starts = 0
                self._assign(worker)
            case Finished(assignment, attempt):
                if attempt.error_from is None:
                    self._accept(assignment, attempt.episode)
                else:
                    self._retry(assignment, attempt.episode, from_policy=attempt.error_from == "policy")
                self._assign(assignment.worker)
            case Lost(worker, reason, started):
                self._replace(worker, reason, started)

    def _assign(self, worker: str) -> None:
        assignment = self._scheduler.next_for(worker)
        if assignment is not None:
            self._pool.submit(assignment)

    def _accept(self, assignment: Assignment, episode: EncodedEpisode) -> None:
        """Writes a finished trial; a late result of an attempt already given up is dropped."""
        if not self._scheduler.done(assignment):
            return
        self._write(assignment.trial, episode)

    def _retry(self, assignment: Assignment, episode: EncodedEpisode, from_policy: bool) -> None:
        """Queues a failed trial again, or writes its error row when its attempts are used up."""
        if self._scheduler.running.get(assignment.worker) != assignment:
            return
        _LOG.warning("%s attempt %d: %s", _label(assignment.trial), assignment.attempt, episode.error)
        if from_policy:
            self._policy_failures[assignment.trial.key] += 1
            if self._policy_failures[assignment.trial.key] > 1:
                self.request_stop(Stop(f"the policy fails again and again: {episode.error}"))
        stopping = self.stop is not None
        if stopping or not self._scheduler.failed(assignment):
            if stopping:
                self._scheduler.done(assignment)
            self._write(assignment.trial, episode)

    def _replace(self, worker: str, reason: str, started: bool) -> None:
        """An env actor is gone: its trial goes to another, and a new actor takes its place."""
        _LOG.warning("%s is gone: %s", worker, reason)
        assignment = self._scheduler.forget(worker)
        if assignment is not None:
            message = f"the env actor died in attempt {assignment.attempt}: {reason}"
            trial = assignment.trial
            self._retry(assignment, lost_row(self._context, trial, assignment.attempt, worker, message), False)
        if not started:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                self.request_stop(Stop(f"env actors cannot start: {reason}", at_once=True))
                return
        if not self._scheduler.finished:
            self._pool.start_worker()

    def _write(self, trial: Trial, episode: EncodedEpisode) -> None:
        self._write_when_there_is_room(episode)
        self._finished += 1
        self._on_episode(trial, episode)
        if episode.error is not None:
            self._errors[episode.error] += 1
        errors = sum(self._errors.values())
        if too_many_errors(errors, self._finished, self._context.config.retry.max_error_share) and self.stop is None:
            most, count = self._errors.most_common(1)[0]
            self.request_stop(Stop(f"{errors} of {self._finished} trials ended in an error; {count} times: {most}"))

    def _write_when_there_is_room(self, episode: EncodedEpisode) -> None:
        deadline = time.monotonic() + _DISK_PATIENCE_S
        while True:
            try:
                self._folder.write_episode(episode)
                return
            except DiskFullError as error:
                if self.stop is not None or time.monotonic() > deadline:
                    raise
                _LOG.error("%s; waiting for room (Ctrl-C stops, keeping what is finished)", error)
                self._on_tick()
                time.sleep(_DISK_PAUSE_S)


def _label(trial: Trial) -> str:
    return f"Task {trial.task.task_id} {trial.task.name} trial {trial.trial}"
