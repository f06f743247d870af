"""Bookkeeping of the driver with thousands of simulated env actors: CPU time and memory.

Driver, scheduler, tally, display and log are real; a queue replaces Ray's actors, and no files are written. The cost of
Ray and of files is measured in driver_cost.py, with as many real actors as the machine has room for.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
import tracemalloc
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from wpray.cli.display import RunDisplay, logging_to
from wpray.config import Config
from wpray.orchestration.actors import ActorHost, Attempt, RunContext
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.events import AttemptFinished, EnvReady, Event, PolicyHashed, PolicyReady
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.policies.factory import policy_spec
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.types import Task, Trial, TrialKey

_TASKS = 10
_HOST = ActorHost("paper", 1, None, {})


@dataclass(frozen=True, slots=True)
class DriverLoad:
    """Cost of a simulated run."""

    env_actors: int
    episodes: int
    cpu_ms: float  # of the driver's thread, per episode
    kept_bytes: float  # memory retained per further episode; 0 unless measured


def measure(env_actors: int, episodes: int, *, memory: bool = False) -> DriverLoad:
    """Drive `episodes` (rounded to tens) episodes; `memory` traces retained memory, at several times the CPU."""
    tasks = [Task("paper", index, f"task_{index}", "do", episodes // _TASKS, 280) for index in range(_TASKS)]
    trials = [Trial(task, trial, 0) for task in tasks for trial in range(task.num_trials)]
    console = Console(file=io.StringIO())
    tally = Tally.planned((task, task.num_trials) for task in tasks)
    actors, folder = _PaperActors(), _NoFolder(len(trials), memory)
    config = Config.model_validate({"task_suite": "fake", "policy": "noop"})
    context = RunContext("paper", config, b"", spec=policy_spec(config))
    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as path, logging_to(Path(path) / "run.log", console):
        shown = RunDisplay(console, tally, 1)
        pools: tuple[Any, Any, Any] = (actors, actors, actors)
        driver = Driver(context, *pools, cast(RunFolder, folder), tally, shown, RunRecord())
        scheduler = Scheduler(trials, 1)
        if memory:
            tracemalloc.start()
        began = time.thread_time()
        driver.run(scheduler, env_actors)
        seconds = time.thread_time() - began
        tracemalloc.stop()
    if folder.written != len(trials):
        raise RuntimeError(f"{folder.written} rows of {len(trials)} trials")
    return DriverLoad(env_actors, len(trials), 1e3 * seconds / len(trials), folder.kept_bytes)


class _PaperActors:
    """Both pools and the queue of events in one; its actors finish in the order in which they got their trials."""

    busy_s = 0.0
    starting = 0

    def __init__(self) -> None:
        self.size = self.replicas_ready = 0
        self._events: deque[Event] = deque([PolicyReady(0, _HOST, 1.0), PolicyHashed({})])

    @property
    def empty(self) -> bool:
        return not self._events

    def next(self, _: float) -> Event | None:
        return self._events.popleft() if self._events else None

    def check(self) -> None:
        """Find no actor that hangs."""

    def start(self) -> None:
        self._events.append(EnvReady(f"env-{self.size}", _HOST))
        self.size += 1

    def submit(self, assignment: Assignment) -> None:
        episode = dataclasses.replace(_EPISODE, key=assignment.trial.key)
        self._events.append(AttemptFinished(assignment, Attempt(episode)))


class _NoFolder:
    """Run folder that only counts rows, and measures how memory grows over the second half of a run."""

    def __init__(self, expected: int, memory: bool) -> None:
        self.written, self.kept_bytes = 0, 0.0
        self._half = expected // 2
        self._marks: dict[int, int] = {self._half: 0, expected: 0} if memory else {}

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        for _ in episodes:
            self.written += 1
            if self.written in self._marks:
                self._marks[self.written] = tracemalloc.get_traced_memory()[0]
                self.kept_bytes = (self._marks[self.written] - self._marks[self._half]) / self._half


_EPISODE: Any = EncodedEpisode(
    TrialKey("", 0, 0), "success", 290, 2.8, b"", None, utilisation=(1.7, 1.0), replans=("plan",)
)
