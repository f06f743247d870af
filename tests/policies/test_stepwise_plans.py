"""Plans that are decoded together although they did not start together are those that each is alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.policies.vla import golden_config, joint_config, observation, segment_request, trial
from wpray.models.staging import rows_of
from wpray.policies.base import StepwisePlans
from wpray.policies.batch_shapes import AnyShapes, BatchShapes
from wpray.policies.batching import Batcher
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

NUMBERS = range(3)


def in_steps(
    plans: StepwisePlans,
    requests: Sequence[PlanRequest],
    starts: Sequence[int],
    segments: Sequence[SegmentRequest] = (),
) -> tuple[list[PlanReply], list[SegmentReply]]:
    """Return replies to requests that start before the steps of these numbers; `segments` share the last answer."""
    found: dict[int, PlanReply] = {}
    others: list[SegmentReply] = []
    under_way: dict[int, int] = {}  # identity of a plan -> number of its request
    begun: list[tuple[list[int], Callable[[], tuple[list[PlanReply], list[SegmentReply]]]]] = []
    for step in itertools.count():
        started = [number for number, start in enumerate(starts) if start == step]
        if started:
            handles = plans.start([requests[number] for number in started])
            under_way |= {id(handle): number for number, handle in zip(started, handles, strict=True)}
        ready = plans.advance()
        for numbers, wait in begun:  # other work has begun since
            replies, others = wait()
            found |= dict(zip(numbers, replies, strict=True))
        if len(found) == len(requests):
            return [found[number] for number in range(len(requests))], others
        numbers = [under_way.pop(id(handle)) for handle in ready]
        last = len(found) + len(numbers) == len(requests)
        begun = [(numbers, plans.answer(ready, segments if last else ()))]
    raise AssertionError


def _policy(checkpoints: Path, name: str) -> WaypointVlaPolicy:
    """Return a policy whose plans take four slots and whose prompts are read one by one."""
    if name == "pair":
        policy = waypoint_vla.build(golden_config(checkpoints))
    else:
        policy = waypoint_vla.build(joint_config(checkpoints / "a", temperature=0.7))
    policy._plan_shapes = BatchShapes(AnyShapes((1,), (4,)))
    return policy


@pytest.mark.parametrize("name", ["pair", "joint, sampled"])
def test_every_order_of_arrival_gives_the_same_plans(name: str, checkpoints: Path, joint_checkpoints: Path) -> None:
    policy = _policy(checkpoints if name == "pair" else joint_checkpoints, name)
    rng = np.random.default_rng(3)
    requests = [PlanRequest(trial(number), number, 2 * number, observation(rng)) for number in NUMBERS]
    segments = [segment_request(rng, number) for number in NUMBERS]
    alone = [policy.plan([request])[0] for request in requests]
    acted = policy.act(segments)
    assert len({reply.plan.waypoints.tobytes() for reply in alone}) == len(requests)
    steps = policy.in_steps()
    for starts in [*itertools.permutations((0, 1, 4)), (0, 0, 0), (2, 0, 2), (9, 0, 8)]:
        replies, others = in_steps(steps, requests, starts, segments)
        for reply, expected in zip(replies, alone, strict=True):
            assert np.array_equal(reply.plan.waypoints, expected.plan.waypoints)
            assert np.array_equal(reply.plan.durations, expected.plan.durations)
            assert (reply.first is None) == (expected.first is None)
            if reply.first is not None and expected.first is not None:
                np.testing.assert_allclose(reply.first.actions, expected.first.actions, atol=1e-4)
            times = reply.timing.planner_s, reply.timing.expert_s
            assert None not in times and min(times) > 0, "what the device computed for it"  # type: ignore[type-var]
        for other, segment in zip(others, acted, strict=True):
            np.testing.assert_allclose(other.segment.actions, segment.segment.actions, atol=1e-4)


def test_a_batcher_gives_many_threads_the_plans_that_each_has_alone(checkpoints: Path) -> None:
    policy = _policy(checkpoints, "pair")
    rng = np.random.default_rng(6)
    requests = [PlanRequest(trial(number), number, 2 * number, observation(rng)) for number in range(12)]
    segments = [segment_request(rng, number) for number in range(12)]
    alone, acted = [policy.plan([request])[0] for request in requests], [policy.act([one])[0] for one in segments]
    policy.stepwise = policy.in_steps()
    batcher = Batcher(policy, 4, 0.001)

    def converse(number: int) -> tuple[SegmentReply, PlanReply]:
        return batcher.act(segments[number]), batcher.plan(requests[number])

    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(converse, range(len(requests))))
    batcher.close()
    assert max(reply.timing.batch_size for _, reply in found) > 1, "plans were under way together"
    for (segment, plan), expected, own in zip(found, alone, acted, strict=True):
        assert np.array_equal(plan.plan.waypoints, expected.plan.waypoints)
        np.testing.assert_allclose(segment.segment.actions, own.segment.actions, atol=1e-4)


def test_plans_that_are_forgotten_leave_nothing_behind(checkpoints: Path) -> None:
    policy = _policy(checkpoints, "pair")
    rng = np.random.default_rng(4)
    requests = [PlanRequest(trial(number), number, 2 * number, observation(rng)) for number in NUMBERS]
    steps = policy.in_steps()
    steps.start(requests)
    steps.advance()
    steps.clear()
    assert steps.advance() == []
    replies, _ = in_steps(steps, requests, (0, 0, 0))
    alone = [policy.plan([request])[0] for request in requests]
    for reply, expected in zip(replies, alone, strict=True):
        assert np.array_equal(reply.plan.waypoints, expected.plan.waypoints)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pair", "joint, sampled"])
def test_a_gpu_gets_more_work_before_it_has_done_what_it_has(
    name: str, checkpoints: Path, joint_checkpoints: Path
) -> None:
    policy = _policy(checkpoints if name == "pair" else joint_checkpoints, name)
    rng = np.random.default_rng(5)
    requests = [PlanRequest(trial(number), number, 2 * number, observation(rng)) for number in NUMBERS]
    segments, steps = [segment_request(rng, number) for number in NUMBERS], policy.in_steps()
    in_steps(steps, requests, (0, 0, 1), segments)  # captures what the next ones replay
    torch.cuda.set_sync_debug_mode("error")
    try:
        replies, _ = in_steps(steps, requests, (0, 0, 1), segments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(replies) == len(requests)


@pytest.mark.parametrize("rows", [[2, 0], [1, 2], [0, 1, 2], []])
def test_rows_that_are_copied_later_are_those_of_a_list(rows: list[int]) -> None:
    values = torch.arange(12).view(3, 4)
    found = rows_of(values, rows)
    assert torch.equal(found, values[rows])
    values.zero_()
    assert found.sum() == sum(sum(range(4 * row, 4 * row + 4)) for row in rows), "a copy"


def test_a_cpu_takes_plans_one_by_one(checkpoints: Path) -> None:
    assert waypoint_vla.build(golden_config(checkpoints)).stepwise is None


def test_one_plan_starts_before_it_is_known_how_many_may(checkpoints: Path) -> None:
    policy = _policy(checkpoints, "pair")
    policy._plan_shapes = BatchShapes(lambda _: AnyShapes((1,), (4,)))
    steps = policy.in_steps()
    assert steps.slots == 1
    requests = [
        PlanRequest(trial(number), number, 0, observation(np.random.default_rng(number))) for number in range(5)
    ]
    steps.start(requests[:1])
    assert steps.slots == 4
    with pytest.raises(RuntimeError, match="5 plans under way, and only 4 slots"):
        steps.start(requests[1:])
