"""Growth of simulated clusters: what each waits for, and where more env actors bring no more."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.simulated_gpu import Costs
from tests.bench.simulation import Outcome, Simulation, make_fake_trials

_TASKS, _EACH, _LEAST = 10, 8, 400  # tasks, episodes per env actor, and the fewest episodes in all
_FULL, FLAT = 0.9, 0.9  # busy share of a resource that limits; share of the maximum at which a curve bends


@dataclass(frozen=True, slots=True)
class Point:
    """Result of one simulated cluster."""

    outcome: Outcome
    efficiency: float  # episodes per minute, relative to as many env actors that never wait
    limit: str  # the resource that it waits for


def simulate(actors: Sequence[int], gpus: Sequence[int], costs: Costs) -> list[Point]:
    """Simulate every number of env actors with every number of GPUs, GPUs first; never more GPUs than actors."""
    alone = _outcome(1, 1, dataclasses.replace(costs, compile_s=0.0)).per_min
    found = (_outcome(a, g, costs) for g, a in itertools.product(sorted(gpus), sorted(actors)) if g <= a)
    return [Point(outcome, outcome.per_min / (alone * outcome.env_actors), _limit(outcome)) for outcome in found]


def bends(points: Sequence[Point]) -> Iterator[Point]:
    """Yield for each number of GPUs the fewest env actors that bring nearly the most episodes."""
    for _, group in itertools.groupby(points, key=lambda point: point.outcome.gpus):
        curve = list(group)
        most = max(point.outcome.per_min for point in curve)
        yield next(point for point in curve if point.outcome.per_min >= FLAT * most)


def _outcome(actors: int, gpus: int, costs: Costs) -> Outcome:
    per_task = max(_LEAST, _EACH * actors) // _TASKS
    return Simulation(make_fake_trials(_TASKS, per_task), actors, gpus, costs).run()


def _limit(outcome: Outcome) -> str:
    if outcome.driver_busy > _FULL:
        return "driver"
    return "GPUs" if outcome.gpu_busy > _FULL else "env actors"
