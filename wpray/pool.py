"""The actors of a run: starts them, hands them work, notices those that died or hang, replaces them.

Everything that happens arrives as an event in one queue, so that the driver's loop is a plain `for`.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from wpray.actors import Attempt, EnvActor, Health, PolicyActor, RunContext
from wpray.cluster_setup import env_memory, worker_environment
from wpray.policy.base import PolicySpec
from wpray.scheduler import Assignment


@dataclass(frozen=True, slots=True)
class Ready:
    """An env actor has started and is idle."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt came back."""

    assignment: Assignment
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Lost:
    """An env actor is gone, with whatever it had in hand."""

    worker: str
    reason: str
    started: bool  # False if it never became ready: a machine that cannot run it


Event = Ready | Finished | Lost


@dataclass(slots=True)
class _Worker:
    handle: Any
    ready: bool = False
    busy: bool = False
    probe_since: float | None = None
    busy_s: float = 0.0


@dataclass(slots=True)
class _Replica:
    handle: Any
    probe_since: float | None = None
    busy_s: float = 0.0


class Pool:
    """Env actors and policy actors of one run."""

    def __init__(self, context: RunContext, spec: PolicySpec) -> None:
        self._context, self._spec = context, spec
        self._workers: dict[str, _Worker] = {}
        self._replicas: list[_Replica] = []
        self._numbers = itertools.count()
        self._events: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._next_probe = 0.0

    @property
    def size(self) -> int:
        """Env actors alive or starting."""
        return len(self._workers)

    @property
    def busy_s(self) -> tuple[float, float]:
        """Seconds at work of (env actors alive, policy actors), as last heard."""
        return sum(w.busy_s for w in self._workers.values()), sum(r.busy_s for r in self._replicas)

    def start_policies(self, count: int) -> float:
        """Starts `count` replicas and waits until they have loaded; returns the longest load time, seconds.

        Raises what building the policy raises.
        """
        config = self._context.config
        options = PolicyActor.options(
            num_gpus=self._spec.num_gpus,
            resources=config.ray.policy_resources,
            runtime_env={"env_vars": worker_environment()},
        )
        self._replicas = [_Replica(options.remote(self._context)) for _ in range(count)]
        loads: list[float] = ray.get([replica.handle.load_s.remote() for replica in self._replicas])
        return max(loads)

    def start_worker(self) -> None:
        """Starts one env actor; a Ready or a Lost event follows."""
        config = self._context.config
        name = f"env-{next(self._numbers)}"
        handle = EnvActor.options(
            num_cpus=config.ray.env_cpus,
            memory=env_memory(config),
            resources=config.ray.env_resources,
            runtime_env={"env_vars": worker_environment()},
        ).remote(name, self._context, [replica.handle for replica in self._replicas])
        self._workers[name] = _Worker(handle)
        self._watch(handle.start.remote(), partial(self._started, name))

    def submit(self, assignment: Assignment) -> None:
        """Gives an idle worker an attempt; a Finished or a Lost event follows."""
        worker = self._workers[assignment.worker]
        worker.busy = True
        self._watch(worker.handle.run.remote(assignment), partial(self._ran, assignment))

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or None if there is none within `timeout_s`; also where hung actors are found."""
        self._probe()
        try:
            return self._events.get(timeout=timeout_s)()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Kills every actor."""
        handles = [worker.handle for worker in self._workers.values()] + [replica.handle for replica in self._replicas]
        for handle in handles:
            ray.kill(handle, no_restart=True)
        self._workers.clear()
        self._replicas.clear()

    def _watch(self, reference: Any, event: Callable[[Future[Any]], Event | None]) -> None:
        """Queues `event` for when `reference` is resolved; it runs on the driver's thread."""
        reference.future().add_done_callback(lambda future: self._events.put(lambda: event(future)))

    def _started(self, name: str, future: Future[Any]) -> Event | None:
        if future.exception() is not None:
            return self._lose(name, future.exception())
        if name not in self._workers:
            return None
        self._workers[name].ready = True
        return Ready(name)

    def _ran(self, assignment: Assignment, future: Future[Any]) -> Event | None:
        if future.exception() is not None:
            return self._lose(assignment.worker, future.exception())
        if assignment.worker in self._workers:
            self._workers[assignment.worker].busy = False
        return Finished(assignment, future.result())

    def _lose(self, name: str, error: BaseException | None) -> Event | None:
        worker = self._workers.pop(name, None)
        if worker is None:
            return None
        ray.kill(worker.handle, no_restart=True)
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return Lost(name, f"{type(cause).__name__}: {' '.join(lines)[:500]}", worker.ready)

    def _probe(self) -> None:
        """Asks busy actors for a sign of life, a few times in each stall_s."""
        now, stall_s = time.monotonic(), self._context.config.retry.stall_s
        if now < self._next_probe:
            return
        self._next_probe = now + min(stall_s / 4, 2.0)
        for name, worker in list(self._workers.items()):
            if worker.busy and worker.probe_since is None:
                worker.probe_since = now
                self._watch(worker.handle.health.remote(), partial(self._heard, name))
            elif worker.probe_since is not None and now - worker.probe_since > stall_s:
                self._hung(name)
        for replica in self._replicas:
            if replica.probe_since is None:
                replica.probe_since = now
                self._watch(replica.handle.health.remote(), partial(self._replica_heard, replica))

    def _heard(self, name: str, future: Future[Any]) -> Event | None:
        worker = self._workers.get(name)
        if worker is None or future.exception() is not None:
            return None  # its run has an event of its own
        health: Health = future.result()
        worker.probe_since, worker.busy_s = None, health.busy_s
        return self._hung(name) if health.idle_s > self._context.config.retry.stall_s else None

    def _hung(self, name: str) -> Event | None:
        """Kills a hung actor; its run fails then, which is the event."""
        worker = self._workers[name]
        ray.kill(worker.handle, no_restart=True)
        return None

    def _replica_heard(self, replica: _Replica, future: Future[Any]) -> Event | None:
        replica.probe_since = None
        if future.exception() is None:
            health: Health = future.result()
            replica.busy_s = max(replica.busy_s, health.busy_s)
            if health.idle_s > self._context.config.retry.stall_s:
                ray.kill(replica.handle, no_restart=False)
        return None
