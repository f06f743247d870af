"""Driver cost per episode: a real run of the fake suite, with the process's CPU time read at every episode.

Files are written and synced as in any run, on the disk that holds the temporary folder.
"""

from __future__ import annotations

import dataclasses
import io
import resource
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console

from tests.bench.disk import disk_of, temporary_folder
from wpray.benchmarks.factory import list_tasks
from wpray.cli.display import RunDisplay, logging_to
from wpray.cluster.setup import running_ray
from wpray.config import Config
from wpray.orchestration.actors import Attempt, EnvActorImpl, RunContext, as_actor
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.env_actor_pool import EnvActorPool
from wpray.orchestration.events import EventQueue
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.policies.factory import policy_spec
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.trials import make_trials
from wpray.types import Trial

_WARM_UP = 0.1  # share of the episodes, during which connections open and caches fill


@dataclass(frozen=True, slots=True)
class DriverCost:
    """Cost of a real run of the fake suite in the driver's process; milliseconds are per episode."""

    env_actors: int
    disk: str  # type of the file system
    episodes: int  # after the warm-up
    cpu_ms: float  # all threads of the driver's process
    files_ms: float  # part of cpu_ms: creating and syncing the episode's files, nearly all in the kernel
    ray_ms: float  # part of cpu_ms: Ray's threads, and the actor call that submits the next trial
    own_ms: float  # part of cpu_ms: everything else
    busy_ms: float  # wall time in which the driver's thread works or waits for the disk
    episodes_per_min: float
    peak_mib: float  # of the driver's process


@dataclass(frozen=True, slots=True)
class _Instant:
    """Readings of several clocks at one moment, seconds."""

    elapsed: float
    process: float
    thread: float
    files: float
    files_elapsed: float
    handing_out: float


def measure(num_actors: int, num_episodes: int, instant: bool = False) -> DriverCost:
    """Run `num_episodes` (rounded up to tens) fake episodes on `num_actors` env actors of a local Ray.

    With `instant`, each actor runs one episode and returns it again at once, so that all of them wait for the driver.

    Raise RunStoppedError or BadInputError if they cannot run on this machine.
    """
    config = Config.model_validate(
        {
            "task_suite": "fake",
            "num_trials_per_task": -(-num_episodes // 10),
            "ray": {"num_env_actors": num_actors, "env_cpus": 0.01},
        }
    )
    console = Console(file=io.StringIO())
    with (
        temporary_folder() as path,
        running_ray(config),
        logging_to(path / "run.log", console),
    ):
        return _run(config, _TimedFolder(path), num_actors, console, instant)


def _run(config: Config, folder: _TimedFolder, num_actors: int, console: Console, instant: bool) -> DriverCost:
    tasks = list_tasks(config.suites[0])
    trials = make_trials(tasks, config.num_trials_per_task, config.seed)
    context = RunContext("bench", config, secrets.token_bytes(32), spec=policy_spec(config))
    tally = Tally.planned((task, config.num_trials_per_task) for task in tasks)
    events = EventQueue()
    policy_actors = PolicyActorPool(context, 0, 1, events)
    env_actors = _TimedPool(context, policy_actors.handles, events)
    if instant:
        env_actors.kind = _InstantActor
    folder.open()
    shown = _Meter(console, tally, folder, env_actors)
    try:
        Driver(context, env_actors, policy_actors, events, folder, tally, shown, RunRecord()).run(
            Scheduler(trials, 1), num_actors
        )
    finally:
        env_actors.close()
        policy_actors.close()
        folder.close()
    return _cost(shown.instants, num_actors, disk_of(folder.path))


def _cost(instants: Sequence[_Instant], num_actors: int, disk: str) -> DriverCost:
    first = int(_WARM_UP * len(instants))
    while first + 2 < len(instants) and instants[first + 1].files == instants[first].files:
        first += 1  # skip to the last episode of a group written together
    count = len(instants) - 1 - first
    a, b = instants[first], instants[-1]
    cpu_s, files_s, thread_s = b.process - a.process, b.files - a.files, b.thread - a.thread
    ray_s = cpu_s - thread_s + b.handing_out - a.handing_out
    busy_s = thread_s - files_s + b.files_elapsed - a.files_elapsed
    return DriverCost(
        env_actors=num_actors,
        disk=disk,
        episodes=count,
        cpu_ms=1e3 * cpu_s / count,
        files_ms=1e3 * files_s / count,
        ray_ms=1e3 * ray_s / count,
        own_ms=1e3 * (cpu_s - files_s - ray_s) / count,
        busy_ms=1e3 * busy_s / count,
        episodes_per_min=60 * count / (b.elapsed - a.elapsed),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


class _TimedFolder(RunFolder):
    """Run folder that measures the time spent on writing."""

    cpu_s = elapsed_s = 0.0

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        began, began_cpu = time.perf_counter(), time.thread_time()
        super().write_episodes(*episodes)
        self.elapsed_s += time.perf_counter() - began
        self.cpu_s += time.thread_time() - began_cpu


class _InstantImpl(EnvActorImpl):
    """Env actor that runs one episode, and returns it at once ever after."""

    _first: Attempt | None = None

    @ray.method(concurrency_group="work", enable_task_events=False)
    def run(self, work: tuple[Sequence[Any], int]) -> Attempt:
        if self._first is None:
            self._first = super().run(work)  # type: ignore[operator]  # Ray's stubs see no method in it
        episode = dataclasses.replace(self._first.episode, key=Assignment.of(work[0]).trial.key)
        return dataclasses.replace(self._first, episode=episode)


_InstantActor: Any = as_actor(_InstantImpl)


class _TimedPool(EnvActorPool):
    """EnvActorPool that measures the time spent on Ray's actor calls."""

    cpu_s = 0.0

    def submit(self, assignment: Assignment) -> None:
        began = time.thread_time()
        super().submit(assignment)
        self.cpu_s += time.thread_time() - began


class _Meter(RunDisplay):
    """Display of a run that also records the clocks at each episode."""

    def __init__(self, console: Console, tally: Tally, folder: _TimedFolder, pool: _TimedPool) -> None:
        super().__init__(console, tally, 1)
        self.instants: list[_Instant] = []
        self._folder, self._pool = folder, pool

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        super().on_episode(trial, episode)
        self.instants.append(
            _Instant(
                elapsed=time.perf_counter(),
                process=time.process_time(),
                thread=time.thread_time(),
                files=self._folder.cpu_s,
                files_elapsed=self._folder.elapsed_s,
                handing_out=self._pool.cpu_s,
            )
        )
