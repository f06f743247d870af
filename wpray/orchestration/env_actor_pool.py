"""Env actors of a run: starting, assigning work, and finding those that died or hang."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from wpray.cluster.setup import demands
from wpray.orchestration.actors import ActorHealth, ActorHost, EnvActor, Renderers, RunContext
from wpray.orchestration.events import ActorFailure, AttemptFinished, EnvLost, EnvReady, Event, EventQueue, failure_of
from wpray.orchestration.scheduler import Assignment, SceneKey, scene_of
from wpray.orchestration.stop_rules import OR_TOO_SHORT, START_STALLS


@dataclass(slots=True)
class _Worker:
    handle: Any
    host: ActorHost | None = None
    busy: bool = False
    heartbeat: float = 0.0  # monotonic time
    requested: float | None = None  # monotonic time of the heartbeat request under way
    exists_since: float | None = None  # monotonic time of its process's first answer; it may still be starting
    scene: SceneKey | None = None  # of its last assignment
    reserves: bool = True  # False: it was started beside those that have reserved all CPUs


class EnvActorPool:
    """Pool of env actors by name. Not thread-safe."""

    kind: Any = EnvActor

    def __init__(
        self, context: RunContext, replicas: list[Any], events: EventQueue, renderers: Renderers | None = None
    ) -> None:
        """Begin without actors. `replicas` are the handles of policy actors; `renderers` draw, if there are any."""
        self._renderers = renderers
        self._context, self._replicas, self._events = context, replicas, events
        self._workers: dict[str, _Worker] = {}
        self._numbers = itertools.count()
        self._next_check = 0.0
        self.replicas_ready = 0  # times that a policy replica or a render actor has become ready
        self.most_reserving: int | None = None  # env actors that reserve CPUs, because Ray has no more; None: all

    @property
    def names(self) -> list[str]:
        """Names of the env actors alive or starting."""
        return list(self._workers)

    @property
    def size(self) -> int:
        """Number of env actors alive or starting."""
        return len(self._workers)

    @property
    def starting(self) -> int:
        """Number of env actors that are not ready yet."""
        return sum(worker.host is None for worker in self._workers.values())

    def start(self) -> None:
        """Start one env actor; an EnvReady or an EnvLost event follows."""
        config = self._context.config
        name = f"env-{next(self._numbers)}"
        reserving = sum(worker.reserves for worker in self._workers.values())
        reserves = self.most_reserving is None or reserving < self.most_reserving
        handle = self.kind.options(
            num_cpus=config.ray.env_cpus if reserves else 0,
            memory=config.env_memory,
            **demands(config.ray.env_resources),
        ).remote(name, self._context.for_environments(), self._replicas, self._renderers)
        # On a cluster it may wait for a node first, without a limit.
        exists_since = None if config.ray.address else time.monotonic()
        self._workers[name] = _Worker(handle, exists_since=exists_since, reserves=reserves)
        self._events.watch(handle.health.remote(), partial(self._exists, name))
        self._events.watch(handle.start.remote(), partial(self._started, name))

    def hand_over(self, context: RunContext, replicas: list[Any], events: EventQueue) -> None:
        """Serve another run with the env actors that are idle; end the others.

        An EnvReady or an EnvLost event follows of each. The benchmark, its suites and the settings of the environments
        must be those of the run before.
        """
        for name in [name for name, worker in self._workers.items() if worker.busy or worker.host is None]:
            self.retire(name)
        self._context, self._replicas, self._events = context, replicas, events
        self.replicas_ready, self._next_check = 0, 0.0
        for name, worker in self._workers.items():
            worker.host, worker.requested, worker.exists_since = None, None, time.monotonic()
            adopted = worker.handle.adopt.remote(context.for_environments(), replicas)
            events.watch(adopted, partial(self._started, name))

    def submit(self, assignment: Assignment) -> None:
        """Give an idle worker an attempt; an AttemptFinished or an EnvLost event follows."""
        worker = self._workers[assignment.worker]
        worker.scene = scene_of(assignment.trial)
        worker.busy, worker.heartbeat, worker.requested = True, time.monotonic(), None
        work = [assignment.plain(), self.replicas_ready]
        self._events.watch(worker.handle.run.remote(work), partial(self._ran, assignment))

    def retire(self, name: str) -> None:
        """End an idle env actor whose process is no longer trusted; no event follows."""
        worker = self._workers.pop(name, None)
        if worker is not None:
            ray.kill(worker.handle, no_restart=True)

    def check(self) -> Event | None:
        """Give up an env actor that has made no step and got no reply for retry.stall_s.

        A heartbeat is requested only when an attempt has been silent for half of that time, so a healthy run costs the
        driver nothing.
        """
        now, stall_s = time.monotonic(), self._context.config.retry.stall_s
        if now < self._next_check:
            return None
        for name, worker in self._workers.items():
            if self._hangs(name, worker, now):
                return self._give_up(name)
        self._next_check = now + min(stall_s / 8, 1.0)
        return None

    def close(self) -> None:
        """Kill every env actor."""
        for name in list(self._workers):
            self.retire(name)

    def _hangs(self, name: str, worker: _Worker, now: float) -> bool:
        stall_s = self._context.config.retry.stall_s
        if worker.host is None:  # it is starting, or waiting for a node with room
            return worker.exists_since is not None and now - worker.exists_since > START_STALLS * stall_s
        if not worker.busy or now - worker.heartbeat < stall_s / 2:
            return False
        if worker.requested is None:
            worker.requested = now
            self._events.watch(worker.handle.health.remote(), partial(self._heard, name))
            return False
        return now - worker.heartbeat > stall_s and now - worker.requested > stall_s / 2

    def _exists(self, name: str, future: Future[Any]) -> Event | None:
        if name in self._workers and future.exception() is None:
            self._workers[name].exists_since = time.monotonic()
        return None

    def _started(self, name: str, future: Future[Any]) -> Event | None:
        if future.exception() is not None:
            return self._lose(name, failure_of(future.exception()))
        if name not in self._workers:
            return None
        host: ActorHost = future.result()
        worker = self._workers[name]
        worker.host = host
        return EnvReady(name, host, worker.scene)

    def _ran(self, assignment: Assignment, future: Future[Any]) -> Event | None:
        if future.exception() is not None:
            return self._lose(assignment.worker, failure_of(future.exception()))
        worker = self._workers.get(assignment.worker)
        if worker is None:
            return None  # late result of an actor that was given up
        worker.busy = False
        return AttemptFinished(assignment, future.result())

    def _heard(self, name: str, future: Future[Any]) -> Event | None:
        worker = self._workers.get(name)
        if worker is None or future.exception() is not None:
            return None  # its call of `run` ends in an event, too
        health: ActorHealth = future.result()
        worker.requested, worker.heartbeat = None, time.monotonic() - health.idle_s
        return self._give_up(name) if worker.busy and health.idle_s > self._context.config.retry.stall_s else None

    def _give_up(self, name: str) -> Event | None:
        stall_s = self._context.config.retry.stall_s
        worker = self._workers.get(name)
        if worker is not None and worker.host is None:
            said = f"it did not start within {START_STALLS * stall_s:g} s ({START_STALLS} x retry.stall_s)"
        else:
            said = f"no step or reply for {stall_s:g} s (retry.stall_s)"
        return self._lose(name, ActorFailure(f"{said}: hung, {OR_TOO_SHORT}", bad_input=False))

    def _lose(self, name: str, failure: ActorFailure) -> Event | None:
        """Remove an env actor that is gone; return its event, once for each actor."""
        worker = self._workers.get(name)
        if worker is None:
            return None
        self.retire(name)
        return EnvLost(name, failure, started=worker.host is not None)
