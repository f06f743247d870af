"""A served episode of a waypoint policy is the episode that the loop runs, for any plans and any variant of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.local import LocalPolicyClient
from wpray.rollout import LoopOptions, RolloutSettings, run_trial
from wpray.serve.walk import Walker, WalkState
from wpray.tracking import DeviationRule, PhysicalSpace
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Trial,
    WaypointPlan,
)


class Planner:
    """Plans with given durations, one list after the other; actions show what was asked for."""

    spec = PolicySpec("planner", images=False, privileged=False, num_gpus=0, max_batch_size=1)

    def __init__(self, plans: list[list[int]], gives_first: bool) -> None:
        self._plans, self._gives_first = plans, gives_first

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        return [self._plan(request) for request in requests]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        return [SegmentReply(self._segment(request)) for request in requests]

    def _plan(self, request: PlanRequest) -> PlanReply:
        durations = np.array(self._plans[request.plan_index % len(self._plans)], np.int64)
        start = request.observation.proprio.astype(np.float32)
        waypoints = np.cumsum(np.full((len(durations), 8), 0.01, np.float32), axis=0) + start
        positive = [index for index, duration in enumerate(durations) if duration > 0]
        first = None
        if self._gives_first and positive and 0 not in durations[: positive[0]]:
            index = positive[0]
            asked = (request.trial, request.plan_index, request.segment_index, request.observation)
            first = self._segment(SegmentRequest(*asked, start, waypoints[index], int(durations[index])))
        return PlanReply(WaypointPlan(start, waypoints, durations), first, space=PhysicalSpace())

    def _segment(self, request: SegmentRequest) -> Segment:
        start = np.zeros(8) if request.start is None else request.start
        about = [request.plan_index, request.segment_index, request.duration, *start[:2], *request.end[:2]]
        row = np.array(about) / 1000 + request.observation.proprio[:7]
        return Segment(np.tile(row, (32, 1)) * np.linspace(0.5, 1, 32)[:, np.newaxis])


class Served:
    """A chunk client that steps through episodes with a walker, its state packed on the way."""

    spec = PolicySpec("served", images=False, privileged=False, num_gpus=0, max_batch_size=1, kind="chunk")

    def __init__(self, policy: Planner, loop: LoopOptions) -> None:
        client = LocalPolicyClient(policy)
        self._walker = Walker(client.plan, client.act, loop, space=PhysicalSpace())

    def predict(self, request: ChunkRequest) -> ChunkReply:
        state = WalkState.unpacked(request.memory) if request.memory else WalkState()
        step = self._walker.step(request.trial, request.observation, state)
        return ChunkReply(step.actions, memory=step.state.packed(), done=step.done)


PLANS = st.lists(st.lists(st.integers(-1, 40), max_size=5), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    plans=PLANS,
    gives_first=st.booleans(),
    starts_from_actual=st.booleans(),
    stop_on_d0=st.booleans(),
    most=st.integers(0, 3),
    rule=st.none() | st.builds(DeviationRule, st.sampled_from([0.02, 0.05, 0.1]), st.sampled_from(["l2", "linf"])),
)
def test_the_steps_are_those_of_the_loop(
    plans: list[list[int]],
    gives_first: bool,
    starts_from_actual: bool,
    stop_on_d0: bool,
    most: int,
    rule: DeviationRule | None,
) -> None:
    loop = LoopOptions(starts_from_actual, most, True, stop_on_d0, replan_on=rule)
    trial, policy = Trial(fake_tasks(60)[0], 3, 0), Planner(plans, gives_first)
    expected = run_trial(FakeEnvironment(), LocalPolicyClient(policy), trial, RolloutSettings(loop=loop))
    found = run_trial(FakeEnvironment(), Served(policy, loop), trial, RolloutSettings())
    assert np.array_equal(found.trajectory.actions, expected.trajectory.actions)
    assert (found.num_steps, found.success) == (expected.num_steps, expected.success)


def test_the_loop_strays_at_some_of_these_distances_and_not_at_others() -> None:
    ends: set[str | None] = set()
    for threshold in (0.02, 0.05, 0.1):
        loop = LoopOptions(replan_on=DeviationRule(threshold))
        policy = LocalPolicyClient(Planner([[3, 4, 5]], True))
        result = run_trial(FakeEnvironment(), policy, Trial(fake_tasks(60)[0], 3, 0), RolloutSettings(loop=loop))
        ends |= {decision.plan_end for decision in result.decisions if decision.kind == "plan"}
    assert ends >= {"deviation", "used_up"}


@pytest.mark.parametrize(
    "memory",
    [
        b"",
        b"\xc1",
        b"\x80" * 3,
        "text",
        WalkState(plans=-1).packed(),
        WalkState(following="x").packed(),  # type: ignore[arg-type]
        WalkState(waypoints=np.zeros((2, 3), np.float32)).packed(),
        WalkState(start=np.zeros((9, 9), np.float32)).packed(),
    ],
)
def test_a_memory_that_no_server_gave_is_refused(memory: Any) -> None:
    with pytest.raises(InvalidRequestError, match="memory: is none that this server gave"):
        WalkState.unpacked(memory)
