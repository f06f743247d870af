"""Plans and segments share one GPU: under a simulated clock, with costs as measured, neither kind starves."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass

import pytest

from tests.bench.simulated_gpu import Costs, RequestKind, SimulatedBatcher, interpolated
from wpray.policies.batching import _GATHER
from wpray.policies.waypoint_vla.request_kinds import SEGMENT

SIZE = 32
SIZES = SEGMENT.rows_up_to(SIZE)
COSTS = {"plan": Costs().plan_s, "segment": Costs().segment_s}
PLAN_S, SEGMENT_S = (interpolated(COSTS[kind], SIZE) for kind in ("plan", "segment"))


@dataclass(slots=True)
class Client:
    """Asks the same kind of question again as soon as it is answered."""

    kind: RequestKind
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


class EnvActor:
    """Acts between replies; every so many requests is a plan. The first may have been asked of a replica that died."""

    def __init__(self, number: int, plan_every: int) -> None:
        self.rng, self.answers, self._plan_every = random.Random(number), 0, plan_every
        self._first = number

    @property
    def kind(self) -> RequestKind:
        return "plan" if self._plan_every and (self._first + self.answers) % self._plan_every == 0 else "segment"

    def go_on(self) -> None:
        self.answers += 1


def _answers(env_actors: int, seconds: float, *, restarted: bool, plan_every: int) -> list[int]:
    """Replies to each env actor within `seconds` after all of them have connected, at once but for half a second."""
    batcher, now, order = SimulatedBatcher(SIZE, 0.002, SIZES), 0.0, itertools.count()
    actors = [EnvActor(number, plan_every) for number in range(env_actors)]
    agenda = [(actor.rng.uniform(0, 0.5), next(order), actor) for actor in actors]
    heapq.heapify(agenda)
    while now < seconds:
        while agenda and agenda[0][0] <= now:
            asked, _, actor = heapq.heappop(agenda)
            batcher.ask(actor.kind, actor, asked, isolated=restarted and actor.answers == 0)
        if (due := batcher.due(now)) > now:
            now = min(due, agenda[0][0] if agenda else math.inf)
            continue
        kind, batch = batcher.take_batch(now)
        cost_s = interpolated(COSTS[kind], min(size for size in SIZES if size >= len(batch)))
        batcher.note_cost(kind, len(batch), cost_s)
        now += cost_s
        for answered in batch:
            assert isinstance(answered, EnvActor)
            answered.go_on()
            pause_s = 16 * Costs().step_s * answered.rng.uniform(0.5, 1.5)
            heapq.heappush(agenda, (now + pause_s, next(order), answered))
    return [actor.answers for actor in actors]


@pytest.mark.parametrize("plan_every", [0, 4], ids=["segments", "plans and segments"])
@pytest.mark.parametrize("env_actors", [16, 44, 200])
def test_after_a_restart_of_the_policy_nobody_starves(env_actors: int, plan_every: int) -> None:
    """Every request in hand is asked again, in a batch of its own; that may cost time, which all of them share."""
    undisturbed, after = (
        _answers(env_actors, 120, restarted=restarted, plan_every=plan_every) for restarted in (False, True)
    )
    for before, now in zip(undisturbed, after, strict=True):
        assert now / sum(after) == pytest.approx(before / sum(undisturbed), rel=0.1)
        assert now >= 0.85 * before  # 200 env actors' requests one by one take ten of 120 seconds
