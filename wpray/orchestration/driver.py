"""Driver: assigns trials to actors, writes the rows that come back, replaces dead actors, applies the stop rules."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from wpray.cluster.setup import env_actors_that_fit
from wpray.errors import BadInputError
from wpray.orchestration.actors import ACTOR_LOST, ActorHost, Attempt, RunContext, lost_row
from wpray.orchestration.env_actor_pool import EnvActorPool
from wpray.orchestration.events import (
    AttemptFinished,
    EnvLost,
    EnvReady,
    Event,
    EventQueue,
    PolicyHashed,
    PolicyLost,
    PolicyReady,
    RenderLost,
    RenderReady,
)
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.orchestration.render_actor_pool import RenderActorPool
from wpray.orchestration.row_sink import ProgressListener, RowSink, TrialRow
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.orchestration.sizing import Sizer
from wpray.orchestration.stop_rules import PolicyErrors, Stop
from wpray.policies.base import Sources
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.system.hardware import cores
from wpray.transport.policy_connection import POLICY_DIED
from wpray.types import AttemptError, Failure, Trial

_LOG = logging.getLogger(__name__)
_TICK_S = 0.25
_GATHER_S = 0.2  # rows are written together because that costs less; a kill loses no more than the current trials
TOGETHER = 32  # most rows in memory; an episode takes some 0.3 MB
_COUNT_NODES_S = 15.0
_SHRUNK_S = 60.0  # pause before env actors are started again after failed starts
_MOST_MESSAGE = 4000  # characters of the error of an earlier attempt, because it travels with every later one
_POLICY_CORES = 2  # cores that are kept for a policy that loads
_FAILED_STARTS = 3  # env actors in a row that never became ready; then the machine is at fault


class RunRecord:
    """Record of what took part in a run: machines, the policy's files and their sources. This one keeps nothing."""

    @property
    def knows_files(self) -> bool:
        """True if earlier results name the digests of the policy's files, so that they must be compared first."""
        return False

    def add_hosts(self, hosts: Mapping[str, ActorHost]) -> None:
        """Record the machines of the actors, by actor name."""

    def add_files(self, hashes: Mapping[str, str]) -> None:
        """Record the SHA-256 by path of what the policy was loaded from. Raises BadInputError if it has changed."""

    def add_sources(self, facts: Mapping[str, Any]) -> None:
        """Record what the policy took from its files."""

    def add_environments(self, number: int, because: str) -> None:
        """Record the number of environments from now on, and why."""


class Driver:
    """Control loop of a run: every trial ends in a row."""

    def __init__(
        self,
        context: RunContext,
        env_actors: EnvActorPool,
        policy_actors: PolicyActorPool,
        events: EventQueue,
        folder: RunFolder,
        tally: Tally,
        listener: ProgressListener,
        record: RunRecord,
        render_actors: RenderActorPool | None = None,
        sizer: Sizer | None = None,
    ) -> None:
        """`sizer` may change the number of env actors during the run; None: it stays."""
        self._sizer, self._most = sizer, math.inf  # env actors, once there are to be fewer
        self._render_actors = render_actors
        self._record, self._verify_files = record, record.knows_files
        self._sources: list[Sources] = []  # distinct sources of the replicas that have loaded
        self._context = context
        self._env_actors, self._policy_actors, self._events = env_actors, policy_actors, events
        self._recorder, self._listener = RowSink(context.config, folder, tally, listener), listener
        self._policy_errors = PolicyErrors()
        self._rows: list[TrialRow] = []  # not written yet
        self._idle: list[str] = []
        self._size = self._wanted = 0  # env actors: the number now, and without failures
        self._grow_at = self._gather_until = math.inf
        self._failed_starts = 0
        self._blamed: set[str] = set()  # incarnations that were ended for an error
        self._count_nodes_at = time.monotonic() + _COUNT_NODES_S
        self._policy_has_answered = self._hashes_are_known = self._draining = False
        self._renderer: str | None = None  # of the first env actor
        self._odd_renderers: set[str] = set()
        self.hosts: dict[str, ActorHost] = {}  # by actor name
        self.stop: Stop | None = None

    def request_stop(self, stop: Stop) -> None:
        """End the run after the current trials, or now if `stop.at_once`.

        After an `intended` stop, the trials that bring every task to the same number also run.
        """
        self.stop = stop if self.stop is None or stop.at_once else self.stop

    def run(self, scheduler: Scheduler, num_workers: int) -> None:
        """Run every trial of `scheduler` on up to `num_workers` env actors, until all have rows or the run must stop.

        Raises BadInputError if no actor can start for a reason that the user can mend.
        """
        self._scheduler, self._size, self._wanted = scheduler, num_workers, num_workers
        try:
            self._loop()
        finally:
            self._write_rows()

    def _loop(self) -> None:
        while not self._scheduler.finished or self._wait_for_hashes():
            self._scale_env_actors()
            self._dispatch()
            left_s = self._gather_until - time.monotonic()
            if len(self._rows) >= TOGETHER or left_s <= 0:
                self._write_rows()  # after `_dispatch`, so that no actor idles while the driver waits for the disk
            for event in self._next_events(max(0.0, min(_TICK_S, left_s))):
                self._handle(event)
            if self.stop is not None:
                if self.stop.at_once:
                    return
                self._drain(self.stop)
            self._listener.on_progress(self._policy_actors.busy_s, self._env_actors.size)

    def _next_events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what has happened, waiting for the first event. Hung actors are found on the way.

        Each event is made after the one before it was handled.
        """
        if self._events.empty:  # else the queue may hold the heartbeat that a check would miss
            event = self._check_actors() or self._events.next(timeout_s)
            if event is not None:
                yield event
        for _ in range(TOGETHER):
            if self._events.empty:
                return
            event = self._events.next(0)
            if event is not None:
                yield event

    def _check_actors(self) -> Event | None:
        drawing = self._render_actors
        return self._env_actors.check() or self._policy_actors.check() or (drawing and drawing.check()) or None

    def _drain(self, stop: Stop) -> None:
        """Assign no more trials, except those that an intended stop needs.

        The warning is logged here and once, because `request_stop` may run in a signal handler.
        """
        if not self._draining:
            self._draining = True
            _LOG.warning("%s: finishing the episodes in hand; Ctrl-C again stops now", stop.reason)
        self._scheduler.even_out() if stop.intended else self._scheduler.stop_taking()

    def _wait_for_hashes(self) -> bool:
        """Return True while all trials are done and the policy's digests are still missing.

        A short run waits for them, because its result must name what was evaluated.
        """
        return self._policy_has_answered and not self._hashes_are_known and self.stop is None

    def _scale_env_actors(self) -> None:
        """Start as many env actors as the nodes hold and the remaining work can use."""
        config, now = self._context.config, time.monotonic()
        if config.ray.address and config.num_env_actors == "auto" and now > self._count_nodes_at:
            self._count_nodes_at = now + _COUNT_NODES_S
            self._size = self._wanted = max(1, env_actors_that_fit(config))
        elif now > self._grow_at:
            self._size, self._grow_at = self._wanted, math.inf
        while self._idle and self._env_actors.size > self._most:
            self._retire(self._idle.pop())
        for _ in range(min(self._size, self._scheduler.num_open) - self._env_actors.size):
            if self._policy_needs_the_cores():
                return
            self._env_actors.start()

    def _policy_needs_the_cores(self) -> bool:
        """Return True if enough env actors are starting beside a policy that loads on this machine.

        Each start keeps a core busy, so more of them at once would be ready no sooner, and the policy later.
        """
        if self._policy_has_answered or self._context.config.ray.address is not None:
            return False
        return self._env_actors.starting >= max(2, cores() - _POLICY_CORES)

    def _correct_size(self, event: AttemptFinished) -> None:
        """Change the number of env actors if what they waited for says so. None starts or ends within an episode."""
        if self._sizer is None or self.stop is not None:
            return
        names, open_trials = self._env_actors.names, self._scheduler.num_open
        worker, episode = event.assignment.worker, event.attempt.episode
        change = self._sizer.finished(worker, names, episode, self._policy_actors.busy_s, open_trials)
        if change is None:
            return
        self._size = self._wanted = change.number
        self._most = change.number if change.number < change.before else math.inf
        _LOG.info("environments: %d instead of %d, because %s", change.number, change.before, change.because)
        self._record.add_environments(change.number, change.because)

    def _retire(self, worker: str) -> None:
        """End an idle env actor that is not needed any more."""
        self._env_actors.retire(worker)
        self._scheduler.forget(worker)
        if self._sizer is not None:
            self._sizer.lost(worker)

    def _dispatch(self) -> None:
        """Assign trials to idle env actors, also while the policy loads: scenes compile meanwhile."""
        while self._idle and (self._hashes_are_known or not self._verify_files):
            assignment = self._scheduler.next_for(self._idle[-1])
            if assignment is None:
                return
            self._idle.pop()
            self._env_actors.submit(assignment)

    def _handle(self, event: Event) -> None:
        match event:
            case EnvReady():
                self._ready(event)
            case AttemptFinished():
                self._finished(event)
                self._correct_size(event)
            case EnvLost():
                self._lost(event)
            case PolicyReady(replica, host, load_s, sources):
                self._policy_has_answered = True
                self._env_actors.replicas_ready += 1
                self.hosts[f"policy-{replica}"] = host
                suite = ", ".join(self._context.config.suites)
                _LOG.info("Task suite %s: policy-%d loaded in %.1f s on %s", suite, replica, load_s, host.name)
                self._note_origin(sources)
            case PolicyHashed(hashes):
                self._hashes_are_known = True
                self._record.add_hosts(self.hosts)  # now, so that run.json names them after a kill, too
                self._record.add_files(hashes)
            case RenderReady(number, host):
                self._renderer_ready(f"render-{number}", host)
            case PolicyLost() | RenderLost():
                self._none_left(event)

    def _renderer_ready(self, name: str, host: ActorHost) -> None:
        self._env_actors.replicas_ready += 1
        self._note_renderer(host)
        self.hosts[name] = host
        _LOG.info("%s draws with %s on %s", name, host.renderer or "no OpenGL", host.name)
        if host.renderer == "osmesa" and self._context.config.env.render == "auto":
            text = "%s has no EGL, and OSMesa is slow for all environments: mount the GPU's driver files, or %s"
            _LOG.warning(text, host.name, "give env.render: local")

    def _none_left(self, event: PolicyLost | RenderLost) -> None:
        """Stop the run, because nothing can answer or draw any more."""
        reason, of_policy = event.failure.reason, isinstance(event, PolicyLost)
        if event.failure.bad_input:
            raise BadInputError(reason)
        what = "the policy cannot run" if of_policy else "no render actor can draw"
        self.request_stop(Stop(f"{what}: {reason}", at_once=True, of_this_run=of_policy))

    def _ready(self, event: EnvReady) -> None:
        self._failed_starts = 0
        if event.scene is not None:
            self._scheduler.holds(event.worker, event.scene)
        self._note_renderer(event.host)
        self.hosts[event.worker] = event.host
        self._idle.append(event.worker)

    def _note_origin(self, sources: Sources) -> None:
        """Log and record what the policy was loaded from, once if all replicas agree."""
        if sources in self._sources:
            return
        self._sources.append(sources)
        for line in sources.lines:
            _LOG.info("%s", line)
        for line in sources.warnings:
            _LOG.warning("%s", line)
        self._record.add_sources(sources.facts)

    def _note_renderer(self, host: ActorHost) -> None:
        """Warn of a second renderer: its images differ slightly, so actions may depend on where a trial ran."""
        if self._renderer is None or host.renderer is None:
            self._renderer = self._renderer or host.renderer
        elif host.renderer not in (self._renderer, *self._odd_renderers):
            self._odd_renderers.add(str(host.renderer))
            text = "%s renders with %s, others with %s: images differ slightly; set env.renderer to one of them"
            _LOG.warning(text, host.name, host.renderer, self._renderer)

    def _finished(self, event: AttemptFinished) -> None:
        failure = event.attempt.failure
        self._succeeded(event) if failure is None else self._failed(event, failure)

    def _succeeded(self, event: AttemptFinished) -> None:
        self._idle.append(event.assignment.worker)
        self._policy_has_answered = True
        solved = event.attempt.episode.status == "success"
        if self._scheduler.done(event.assignment, solved):  # False: the late result of an attempt that was given up
            self._keep(event.assignment.trial, event.attempt.episode)

    def _failed(self, event: AttemptFinished, failure: Failure) -> None:
        """Handle an attempt that raised: replace the policy replica or the env actor that it came from.

        An invalid request is the fault of neither and would fail again, so its trial gets its error row at once.
        """
        assignment, attempt = event.assignment, event.attempt
        if failure.origin == "environment":
            self._env_actors.retire(assignment.worker)
        else:
            self._idle.append(assignment.worker)
        if failure.origin == "policy":
            self._handle_policy_error(assignment.trial, attempt, failure)
        if self._scheduler.running.get(assignment.worker) == assignment:
            error = AttemptError(assignment.attempt, assignment.worker, failure.shortened(_MOST_MESSAGE))
            self._try_again(assignment, attempt.episode, error, useless=failure.origin == "request")
        if failure.origin == "environment":
            self._scheduler.forget(assignment.worker)

    def _handle_policy_error(self, trial: Trial, attempt: Attempt, failure: Failure) -> None:
        """Restart the replica, once for each incarnation: its other requests may fail with it."""
        if failure.kind == POLICY_DIED or attempt.replica is None or attempt.incarnation is None:
            return
        if self._policy_errors.repeat(trial.key, failure.kind, attempt.incarnation):
            reason = f"the policy fails again and again: {attempt.episode.error}"
            self.request_stop(Stop(reason, of_this_run=True))
        elif attempt.incarnation not in self._blamed:
            self._blamed.add(attempt.incarnation)
            self._policy_actors.restart(attempt.replica)

    def _lost(self, event: EnvLost) -> None:
        """Give the trial of a dead env actor to another; a new actor takes its place."""
        _LOG.warning("%s is gone: %s", event.worker, event.failure.reason)
        if event.worker in self._idle:
            self._idle.remove(event.worker)
        if self._sizer is not None:
            self._sizer.lost(event.worker)
        assignment = self._scheduler.forget(event.worker)
        if assignment is not None:
            reason = f"the env actor died in attempt {assignment.attempt}: {event.failure.reason}"
            failure = Failure("actor", ACTOR_LOST, reason)
            error = AttemptError(assignment.attempt, assignment.worker, failure)
            self._try_again(assignment, lost_row(self._context, assignment, failure), error)
        if not event.started:
            self._could_not_start(event)

    def _could_not_start(self, event: EnvLost) -> None:
        self._failed_starts += 1
        if event.failure.bad_input and not any(name.startswith("env-") for name in self.hosts):
            raise BadInputError(event.failure.reason)
        if self._failed_starts < _FAILED_STARTS:
            return
        if self._env_actors.size == 0:
            self.request_stop(Stop(f"env actors cannot start: {event.failure.reason}", at_once=True))
        self._failed_starts, self._size = 0, self._env_actors.size
        self._grow_at = time.monotonic() + _SHRUNK_S
        _LOG.warning("going on with %d env actors for %.0f s", self._size, _SHRUNK_S)

    def _try_again(
        self, assignment: Assignment, error_row: EncodedEpisode, error: AttemptError, *, useless: bool = False
    ) -> None:
        """Queue a failed trial again, with its error.

        Its error row is kept instead if a retry is `useless`, if no attempt is left, or if the run stops.
        """
        _LOG.warning("%s attempt %d: %s", assignment.trial.label, assignment.attempt, error_row.error)
        if useless or (self.stop is not None and not self.stop.intended):
            self._scheduler.done(assignment)
        elif self._scheduler.failed(assignment, error):
            return
        self._keep(assignment.trial, error_row)

    def _keep(self, trial: Trial, episode: EncodedEpisode) -> None:
        if not self._rows:
            self._gather_until = time.monotonic() + _GATHER_S
        self._rows.append((trial, episode))

    def _write_rows(self) -> None:
        """Write and count the rows that have come; this may wait for the disk."""
        rows, self._rows, self._gather_until = self._rows, [], math.inf
        stop = self._recorder.keep(rows, lambda: self.stop is not None) if rows else None
        if stop is not None:
            self.request_stop(stop)
