"""Actors that serve env actors: restarting those that hang or fail, and noticing when none is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import ray

from wpray.cluster.gather import cause_of
from wpray.errors import ThreadDiedError
from wpray.orchestration.actors import ActorHealth, LoadedReplica, RunContext
from wpray.orchestration.events import ActorFailure, Event, EventQueue, failure_of
from wpray.orchestration.stop_rules import OR_TOO_SHORT, START_STALLS

_LOG = logging.getLogger(__name__)
_CHECK_S, _LOADING_S = 2.0, 0.25  # between two heartbeats, once loaded and while loading
_PATIENCE_S = 900.0  # longest time in which each restart fails and no replica answers
_USELESS_INCARNATIONS = 10  # consecutive ones of a replica that only lost a thread: another would not help


@dataclass(slots=True)
class _Replica:
    handle: Any
    gone: bool = False  # True if Ray will not restart it
    alive: bool = False  # True if it has answered since it was last started
    loaded: bool = False
    requested: float | None = None  # monotonic time of the heartbeat request under way
    busy_s: float = 0.0  # of this incarnation
    past_s: float = 0.0  # of its earlier incarnations
    useless: int = 0  # incarnations in a row that computed nothing and lost a thread


class ServingActorPool:
    """Pool of serving actors by number. Not thread-safe."""

    kind: ClassVar[str]  # begins the actors' names

    def __init__(self, context: RunContext, handles: Iterable[Any], events: EventQueue) -> None:
        """Watch the actors that were started: `check` returns what the subclass makes of one that is ready or lost."""
        self._stall_s, self._events = context.config.retry.stall_s, events
        # On a cluster an actor may wait for a node without a limit; a local one that does not start is frozen.
        self._start_s = START_STALLS * self._stall_s if context.config.ray.address is None else math.inf
        self._replicas = [_Replica(handle) for handle in handles]
        self._silent_since: float | None = None  # time of the first failure after the last answer of any replica
        self._next_check = 0.0

    @property
    def handles(self) -> list[Any]:
        """Ray handles of the actors, for env actors."""
        return [replica.handle for replica in self._replicas]

    @property
    def busy_s(self) -> float:
        """Seconds of computing, over all replicas, as last reported."""
        return sum(replica.past_s + replica.busy_s for replica in self._replicas)

    def restart(self, number: int) -> None:
        """Replace the replica's process, which loads again; env actors that wait for an answer retry."""
        self._forget(number)
        ray.kill(self._replicas[number].handle, no_restart=False)

    def check(self) -> Event | None:
        """Request heartbeats now and then; restart a replica that does not answer in time."""
        now = time.monotonic()
        if now < self._next_check:
            return None
        self._next_check = now + (_CHECK_S if all(replica.loaded for replica in self._replicas) else _LOADING_S)
        if self._silent_since is not None and now - self._silent_since > _PATIENCE_S:
            text = f"no {self.kind} actor has answered for {_PATIENCE_S:.0f} s"
            return self.on_lost(ActorFailure(text, bad_input=False))
        for number, replica in enumerate(self._replicas):
            if replica.gone:
                continue
            if replica.requested is None:
                replica.requested = now
                self._events.watch(replica.handle.health.remote(), partial(self._heard, number))
            elif now - replica.requested > self._patience_s(replica):
                self._hung(number)
        return None

    def close(self) -> None:
        """Kill every replica."""
        for replica in self._replicas:
            ray.kill(replica.handle, no_restart=True)

    def on_ready(self, number: int, loaded: LoadedReplica) -> Event:
        """Return the event of a replica that can answer now."""
        raise NotImplementedError

    def on_lost(self, failure: ActorFailure) -> Event:
        """Return the event that no replica is left, or that none could work."""
        raise NotImplementedError

    def _patience_s(self, replica: _Replica) -> float:
        """Return the longest wait for a heartbeat. Loading gets more, because an import may hold Python's lock."""
        if not replica.alive:
            return self._start_s
        return self._stall_s if replica.loaded else START_STALLS * self._stall_s

    def _heard(self, number: int, future: Future[Any]) -> Event | None:
        replica, error = self._replicas[number], future.exception()
        replica.requested = None
        if error is not None:
            return self._failed(number, error)
        health: ActorHealth = future.result()
        self._silent_since, replica.alive = None, True
        for notice in health.notices:
            _LOG.warning("%s", notice)
        if health.busy_s < replica.busy_s:
            replica.past_s += replica.busy_s
        replica.busy_s = health.busy_s
        if health.idle_s > self._stall_s:
            self._hung(number)
            return None
        if health.loaded is None:
            replica.loaded = False  # it may have been restarted since the last heartbeat
            return None
        if replica.loaded:
            return None
        replica.loaded = True
        return self.on_ready(number, health.loaded)

    def _failed(self, number: int, error: BaseException) -> Event | None:
        """Handle a failed heartbeat: the replica is gone for good, or Ray is restarting it."""
        if isinstance(cause_of(error), ThreadDiedError):
            return self._thread_died(number, failure_of(error))
        if not isinstance(error, ray.exceptions.ActorUnavailableError):
            return self._lose(number, failure_of(error))
        if self._replicas[number].alive:
            _LOG.warning("%s-%d is gone; it is started again", self.kind, number)
        self._forget(number)
        self._silent_since = self._silent_since or time.monotonic()
        return None

    def _forget(self, number: int) -> None:
        """Expect a new incarnation: a process that has not answered yet.

        A request under way may reach it, if the earlier one never started, so it gets the time that starting takes.
        """
        replica = self._replicas[number]
        replica.alive = replica.loaded = False
        replica.requested = None if replica.requested is None else time.monotonic()

    def _hung(self, number: int) -> None:
        text = "%s-%d has not answered (retry.stall_s: %g s): hung, %s; it is restarted"
        _LOG.warning(text, self.kind, number, self._stall_s, OR_TOO_SHORT)
        self.restart(number)

    def _thread_died(self, number: int, failure: ActorFailure) -> Event | None:
        """Restart a process that is alive but useless: it answers nothing, or accepts no connection."""
        replica = self._replicas[number]
        replica.useless = replica.useless + 1 if replica.busy_s == 0 else 0
        if replica.useless == _USELESS_INCARNATIONS:
            ray.kill(replica.handle, no_restart=True)
            return self._lose(number, failure)
        _LOG.warning("%s-%d: %s; it is restarted", self.kind, number, failure.reason)
        self.restart(number)
        return None

    def _lose(self, number: int, failure: ActorFailure) -> Event | None:
        self._replicas[number].gone = True
        if failure.bad_input or all(replica.gone for replica in self._replicas):
            return self.on_lost(failure)
        return None
