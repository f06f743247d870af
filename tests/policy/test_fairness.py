"""Plans and segments share one GPU: under a simulated clock, with costs as measured, neither kind starves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from wpray.bench.simulated_gpu import Costs, Kind, SimulatedBatcher, interpolated
from wpray.policy.batch_shapes import SEGMENT
from wpray.policy.batching import _GATHER

SIZE = 32
SIZES = SEGMENT.rows_up_to(SIZE)
COSTS = {"plan": Costs().plan_s, "segment": Costs().segment_s}
PLAN_S, SEGMENT_S = (interpolated(COSTS[kind], SIZE) for kind in ("plan", "segment"))


@dataclass(slots=True)
class Client:
    """Asks the same kind of question again as soon as it is answered."""

    kind: Kind
    asked: float = 0.0
    longest: float = 0.0  # wait for a batch

    def go_on(self) -> None: ...


def _longest_waits(plans: int, segments: int, seconds: float) -> tuple[float, float]:
    clients = [Client("plan") for _ in range(plans)] + [Client("segment") for _ in range(segments)]
    batcher, now = SimulatedBatcher(SIZE, 0.002, SIZES), 0.0
    for client in clients:
        batcher.ask(client.kind, client, 0.0)
    while now < seconds:
        now = batcher.due(now)
        kind, batch = batcher.take_batch(now)
        cost_s = interpolated(COSTS[kind], min(size for size in SIZES if size >= len(batch)))
        batcher.note_cost(kind, len(batch), cost_s)
        for client in batch:
            assert isinstance(client, Client)
            client.longest = max(client.longest, now - client.asked)
            client.asked = now + cost_s
        now += cost_s
        for client in batch:
            batcher.ask(kind, client, now)
    for client in clients:  # one that was never answered has waited all along
        client.longest = max(client.longest, now - client.asked)
    plan_s, segment_s = (max(client.longest for client in clients if client.kind == kind) for kind in COSTS)
    return plan_s, segment_s


@pytest.mark.parametrize(("plans", "segments"), [(1, 32), (1, 200), (200, 1), (32, 32), (32, 200), (200, 32)])
def test_neither_kind_starves_however_much_there_is_of_the_other(plans: int, segments: int) -> None:
    """Nobody waits longer than it takes to answer everybody once, and than plans gather before they go."""
    everybody_s = math.ceil(plans / SIZE) * PLAN_S + math.ceil(segments / SIZE) * SEGMENT_S
    plan_s, segment_s = _longest_waits(plans, segments, seconds=300)
    assert plan_s <= everybody_s + _GATHER * PLAN_S
    assert segment_s <= everybody_s
