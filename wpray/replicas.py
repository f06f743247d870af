"""The policy actors of a run: starts them, has Ray restart those that hang or fail, notices when none is left."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from wpray.actors import Health, Loaded, PolicyActor, RunContext
from wpray.events import Event, EventQueue, Failure, PolicyLost, PolicyReady, failure_of
from wpray.policy.base import PolicySpec

_CHECK_S = 2.0
_PATIENCE_S = 900.0  # without an answer of any replica: they die as often as they are restarted


@dataclass(slots=True)
class _Replica:
    handle: Any
    gone: bool = False  # for good: Ray will not restart it
    asked: bool = False
    heard: float = 0.0  # monotonic instant of the last answer
    busy_s: float = 0.0  # of this life
    past_s: float = 0.0  # of its lives before


class Replicas:
    """Policy actors by number. Not thread-safe."""

    def __init__(self, context: RunContext, spec: PolicySpec, count: int, events: EventQueue) -> None:
        """Starts `count` replicas; a PolicyReady event follows for each that loads, else a PolicyLost."""
        self._stall_s, self._events = context.config.retry.stall_s, events
        options = PolicyActor.options(
            num_gpus=spec.num_gpus,
            resources=context.config.ray.policy_resources,
        )
        self._replicas = [_Replica(options.remote(number, context)) for number in range(count)]
        self._loading = count
        self._next_check = 0.0
        for number, replica in enumerate(self._replicas):
            events.watch(replica.handle.loaded.remote(), partial(self._loaded, number))

    @property
    def handles(self) -> list[Any]:
        """For those who ask them."""
        return [replica.handle for replica in self._replicas]

    @property
    def busy_s(self) -> float:
        """Seconds of computing, over all replicas, as last heard."""
        return sum(replica.past_s + replica.busy_s for replica in self._replicas)

    def restart(self, number: int) -> None:
        """A fresh process takes the replica's place and loads again; whoever waits for an answer asks again."""
        ray.kill(self._replicas[number].handle, no_restart=False)

    def check(self) -> Event | None:
        """Asks every replica for a sign of life, now and then."""
        now = time.monotonic()
        if now < self._next_check:
            return None
        self._next_check = now + _CHECK_S
        if self._loading == 0 and now - max(replica.heard for replica in self._replicas) > _PATIENCE_S:
            return PolicyLost(Failure(f"no policy actor has answered for {_PATIENCE_S:.0f} s", bad_input=False))
        for number, replica in enumerate(self._replicas):
            if not replica.asked and not replica.gone:
                replica.asked = True
                self._events.watch(replica.handle.health.remote(), partial(self._heard, number))
        return None

    def close(self) -> None:
        """Kills every replica."""
        for replica in self._replicas:
            ray.kill(replica.handle, no_restart=True)

    def _loaded(self, number: int, future: Future[Any]) -> Event | None:
        self._loading -= 1
        if future.exception() is not None:
            return self._lose(number, failure_of(future.exception()))
        self._replicas[number].heard = time.monotonic()
        loaded: Loaded = future.result()
        return PolicyReady(number, loaded.host, loaded.seconds)

    def _heard(self, number: int, future: Future[Any]) -> Event | None:
        replica = self._replicas[number]
        replica.asked = False
        error = future.exception()
        if isinstance(error, ray.exceptions.ActorDiedError):
            return self._lose(number, failure_of(error))
        if error is not None:
            return None  # dying or being restarted
        health: Health = future.result()
        if health.busy_s < replica.busy_s:
            replica.past_s += replica.busy_s
        replica.busy_s, replica.heard = health.busy_s, time.monotonic()
        if health.idle_s > self._stall_s:
            self.restart(number)
        return None

    def _lose(self, number: int, failure: Failure) -> Event | None:
        self._replicas[number].gone = True
        if failure.bad_input or all(replica.gone for replica in self._replicas):
            return PolicyLost(failure)
        return None
