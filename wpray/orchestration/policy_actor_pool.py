"""Policy actors of a run: starting, restarting those that hang or fail, and noticing when none is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from wpray.cluster.gather import cause_of
from wpray.cluster.setup import demands
from wpray.errors import ThreadDiedError
from wpray.orchestration.actors import ActorHealth, PolicyActor, RunContext
from wpray.orchestration.events import (
    ActorFailure,
    Event,
    EventQueue,
    PolicyHashed,
    PolicyLost,
    PolicyReady,
    failure_of,
)
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


class PolicyActorPool:
    """Pool of policy actors by number. Not thread-safe."""

    def __init__(
        self,
        context: RunContext,
        num_gpus: float,
        count: int,
        events: EventQueue,
        start: Callable[[int], Any] | None = None,
    ) -> None:
        """Start `count` replicas; `check` returns a PolicyReady event for each that loads, else a PolicyLost.

        `start` returns the handle of a replica by its number; default: an actor that loads the configured policy.
        """
        self._stall_s, self._events = context.config.retry.stall_s, events
        # On a cluster an actor may wait for a node without a limit; a local one that does not start is frozen.
        self._start_s = START_STALLS * self._stall_s if context.config.ray.address is None else math.inf
        options = PolicyActor.options(**{**demands(context.config.ray.policy_resources), "num_gpus": num_gpus})
        start = start or (lambda number: options.remote(number, context))
        self._replicas = [_Replica(start(number)) for number in range(count)]
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
            return PolicyLost(ActorFailure(f"no policy actor has answered for {_PATIENCE_S:.0f} s", bad_input=False))
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
        self._events.watch(replica.handle.file_hashes.remote(), partial(self._hashed, number))
        return PolicyReady(number, health.loaded.host, health.loaded.load_seconds, health.loaded.sources)

    def _hashed(self, number: int, future: Future[Any]) -> Event | None:
        error = future.exception()
        if error is None:
            return PolicyHashed(future.result())
        if isinstance(error, ray.exceptions.ActorUnavailableError) or isinstance(cause_of(error), ConnectionError):
            self._replicas[
                number
            ].loaded = False  # it died meanwhile; its digests are requested again after it has loaded
            return None
        _LOG.warning("policy-%d does not know what it was loaded from: %s", number, failure_of(error).reason)
        return PolicyHashed({})

    def _failed(self, number: int, error: BaseException) -> Event | None:
        """Handle a failed heartbeat: the replica is gone for good, or Ray is restarting it."""
        if isinstance(cause_of(error), ThreadDiedError):
            return self._thread_died(number, failure_of(error))
        if not isinstance(error, ray.exceptions.ActorUnavailableError):
            return self._lose(number, failure_of(error))
        if self._replicas[number].alive:
            _LOG.warning("policy-%d is gone; it is started again", number)
        self._forget(number)
        self._silent_since = self._silent_since or time.monotonic()
        return None

    def _forget(self, number: int) -> None:
        """Expect a new incarnation: a process that has not answered yet."""
        self._replicas[number].alive = self._replicas[number].loaded = False

    def _hung(self, number: int) -> None:
        text = "policy-%d has not answered (retry.stall_s: %g s): hung, %s; it is restarted"
        _LOG.warning(text, number, self._stall_s, OR_TOO_SHORT)
        self.restart(number)

    def _thread_died(self, number: int, failure: ActorFailure) -> Event | None:
        """Restart a process that is alive but useless: it answers nothing, or accepts no connection."""
        replica = self._replicas[number]
        replica.useless = replica.useless + 1 if replica.busy_s == 0 else 0
        if replica.useless == _USELESS_INCARNATIONS:
            ray.kill(replica.handle, no_restart=True)
            return self._lose(number, failure)
        _LOG.warning("policy-%d: %s; it is restarted", number, failure.reason)
        self.restart(number)
        return None

    def _lose(self, number: int, failure: ActorFailure) -> Event | None:
        self._replicas[number].gone = True
        if failure.bad_input or all(replica.gone for replica in self._replicas):
            return PolicyLost(failure)
        return None
