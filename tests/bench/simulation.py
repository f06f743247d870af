"""Simulation of a cluster with the scheduler and the batching rule of real runs.

Events happen in the order of their times. An env actor has its own core and runs the sequence of an episode: compile,
reset, step, observe, request. A policy replica has its own GPU. The driver serves one finished episode at a time. The
durations of calls are given; real code decides how requests share a batch, and which actor gets which trial.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.bench.simulated_gpu import Busy, Costs, RequestKind, SimulatedGpu
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.types import MAX_SEGMENT_STEPS, Task, Trial

_Step = float | RequestKind  # seconds that an env actor computes, or the kind of its request


@dataclass(frozen=True, slots=True)
class Shape:
    """Composition of an episode."""

    wait_steps: int = 10
    plans: int = 3
    segments: int = 17  # each of 1 to 32 steps; the first of a plan comes with it

    @property
    def requests(self) -> int:
        """Number of requests to the policy."""
        return self.segments

    @property
    def mean_steps(self) -> float:
        """Mean control steps per episode."""
        return self.wait_steps + self.segments * (1 + MAX_SEGMENT_STEPS) / 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a simulated run. Shares refer to the steady middle half of the episodes."""

    env_actors: int
    gpus: int
    episodes: int
    per_min: float  # episodes per minute, in the steady half
    makespan_s: float  # from the first start to the last end
    gpu_busy: float  # share
    driver_busy: float  # share
    mean_batch: float
    idle_with_work_s: float  # longest idle time of an env actor while trials were pending


def make_fake_trials(num_tasks: int, per_task: int) -> list[Trial]:
    """Return the trials of a suite whose tasks are all alike."""
    tasks = [Task("simulated", index, f"task_{index}", "do", per_task, 280) for index in range(num_tasks)]
    return [Trial(task, trial, 0) for task in tasks for trial in range(per_task)]


class Simulation:
    """Simulation of one run of `trials`."""

    def __init__(
        self,
        trials: list[Trial],
        env_actors: int,
        gpus: int,
        costs: Costs | None = None,
        shape: Shape | None = None,
        batching: tuple[int, float] = (32, 0.002),
    ) -> None:
        """`batching` is the largest batch and the longest wait, s; by default the configuration's."""
        self.scheduler = Scheduler(trials, max_attempts=1)
        self.costs, self.shape = costs or Costs(), shape or Shape()
        self.now = 0.0
        self.finished: list[float] = []  # times at which episodes ended
        self.answered: list[float] = []  # times at which requests were answered
        self.idle: dict[str, float] = {}  # idle env actors, with the time since when
        self.idle_with_work_s = 0.0
        self._num_trials = len(trials)
        self._agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()
        self._driver_free, self._driver_busy = 0.0, Busy()
        self._gpus = [SimulatedGpu(self, self.costs, *batching) for _ in range(gpus)]
        self._actors = [_Actor(self, f"env-{i}", self._gpus[i % gpus]) for i in range(env_actors)]

    def run(self) -> Outcome:
        """Simulate until the last episode ends."""
        for actor in self._actors:
            self.give_work(actor)
        while self._agenda:
            self.now, _, act, argument = heapq.heappop(self._agenda)
            act(argument)
        return self._outcome()

    def at(self, instant: float, act: Callable[[Any], None], argument: Any = None) -> None:
        """Call `act(argument)` at `instant`."""
        heapq.heappush(self._agenda, (instant, next(self._numbers), act, argument))

    def ended(self, actor: _Actor) -> None:
        """Queue a finished episode for the driver, which writes it and dispatches the next trial."""
        began = max(self.now, self._driver_free)
        self._driver_free = began + self.costs.driver_s
        self._driver_busy.add(began, self._driver_free)
        self.idle[actor.name] = self.now
        self.at(self._driver_free, self._written, actor)

    def give_work(self, actor: _Actor) -> None:
        """Give `actor` the scheduler's next trial, if there is one."""
        assignment = self.scheduler.next_for(actor.name)
        if assignment is None:
            self.idle.setdefault(actor.name, self.now)
            return
        since = self.idle.pop(actor.name, self.now)
        self.idle_with_work_s = max(self.idle_with_work_s, self.now - since)
        actor.begin(assignment)

    def _written(self, actor: _Actor) -> None:
        assert actor.assignment is not None
        self.scheduler.done(actor.assignment)
        self.finished.append(self.now)
        self.give_work(actor)

    def _outcome(self) -> Outcome:
        ends = self.finished
        first, last = ends[len(ends) // 4], ends[3 * len(ends) // 4]
        steady = max(last - first, 1e-9)
        # Count requests instead of episodes: thousands of env actors end theirs in waves, which would distort the rate.
        requests = bisect.bisect_right(self.answered, last) - bisect.bisect_right(self.answered, first)
        batches = [gpu.batches for gpu in self._gpus]
        return Outcome(
            env_actors=len(self._actors),
            gpus=len(self._gpus),
            episodes=self._num_trials,
            per_min=60 * requests / self.shape.requests / steady,
            makespan_s=self.now,
            gpu_busy=sum(gpu.busy.within(first, last) for gpu in self._gpus) / steady / len(self._gpus),
            driver_busy=self._driver_busy.within(first, last) / steady,
            mean_batch=sum(gpu.requests for gpu in self._gpus) / max(1, sum(batches)),
            idle_with_work_s=self.idle_with_work_s,
        )


class _Actor:
    """Simulated env actor."""

    def __init__(self, simulation: Simulation, name: str, gpu: SimulatedGpu) -> None:
        self.name = name
        self._simulation, self._gpu = simulation, gpu
        self._task: int | None = None  # the task that it has compiled
        self._asked = False
        self.assignment: Assignment | None = None

    def begin(self, assignment: Assignment) -> None:
        task = assignment.trial.task.task_id
        self._steps = _episode(assignment.trial, self._simulation.costs, self._simulation.shape, task != self._task)
        self._task, self.assignment = task, assignment
        self.go_on()

    def go_on(self, _: None = None) -> None:
        """Continue with the next step of the episode."""
        if self._asked:
            self._asked = False
            self._simulation.answered.append(self._simulation.now)
        step = next(self._steps, None)
        if step is None:
            self._simulation.ended(self)
        elif isinstance(step, float):
            self._simulation.at(self._simulation.now + step, self.go_on)
        else:
            self._asked = True
            self._gpu.ask(step, self)


def _episode(trial: Trial, costs: Costs, shape: Shape, compiles: bool) -> Iterator[_Step]:
    """Yield the steps of a trial, which are the same for any number of actors, as in a real run."""
    drawn = random.Random(f"{trial.key}")
    yield costs.reset_s + costs.compile_s * compiles + shape.wait_steps * costs.step_s
    for plan in range(shape.plans):
        segments = shape.segments // shape.plans + (plan < shape.segments % shape.plans)
        for segment in range(segments):
            yield costs.look_s
            yield "segment" if segment else "plan"
            yield drawn.randint(1, MAX_SEGMENT_STEPS) * costs.step_s
