"""The episode loop against hand-made environments and policies: every clause of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from wpray.envs.base import NOOP_ACTION
from wpray.policy.base import PolicySpec
from wpray.rollout import PolicyOutputError, RolloutSettings, run_trial
from wpray.types import (
    FloatArray,
    ImageArray,
    Observation,
    PlanReply,
    PlanRequest,
    SceneState,
    Segment,
    SegmentReply,
    SegmentRequest,
    SimState,
    Task,
    Trial,
    WaypointPlan,
    first_executable,
)

TASK = Task("toy", 0, "toy_task", "do it", num_trials=1, max_steps=50)
TRIAL = Trial(TASK, 0, seed=0)


class CountingEnv:
    """Counts steps; solved at step `solved_at`; the proprio is the step count."""

    def __init__(self, solved_at: int | None = None) -> None:
        self.solved_at, self.steps, self.render_s = solved_at, 0, 0.0
        self.observed_at: list[int] = []

    def load(self, task: Task) -> None: ...

    def reset(self, trial: Trial) -> None:
        self.steps = 0

    def step(self, action: FloatArray) -> bool:
        self.steps += 1
        return self.steps == self.solved_at

    def observe(self, *, images: bool, privileged: bool) -> Observation:
        self.observed_at.append(self.steps)
        return Observation(np.full(8, float(self.steps)))

    def state(self) -> SimState:
        at = np.full(1, float(self.steps))
        return SimState(at, at, np.zeros(3), np.zeros(4), np.zeros(2), at, np.zeros(1, np.float32))

    def scene(self) -> SceneState:
        return SceneState(np.zeros((1, 3)), np.zeros((1, 4)))

    def render(self, state: SimState, scene: SceneState, *, camera: str, height: int, width: int) -> ImageArray:
        raise NotImplementedError

    def close(self) -> None: ...


class PlansFromDurations:
    """Plans waypoint i as the vector i, with given durations; remembers what it was asked."""

    spec = PolicySpec("toy", images=False, privileged=False, num_gpus=0, max_batch_size=1)

    def __init__(self, durations: Sequence[int], chunk: int = 32) -> None:
        self.durations, self.chunk = np.array(durations, dtype=np.int64), chunk
        self.acts: list[SegmentRequest] = []
        self.plans: list[PlanRequest] = []

    def plan(self, request: PlanRequest) -> PlanReply:
        self.plans.append(request)
        count = len(self.durations)
        waypoints = np.repeat(np.arange(count, dtype=np.float32)[:, None], 8, axis=1)
        plan = WaypointPlan(np.full(8, -1, np.float32), waypoints, self.durations)
        first = None if first_executable(self.durations) is None else Segment(np.zeros((self.chunk, 7)))
        return PlanReply(plan, first)

    def act(self, request: SegmentRequest) -> SegmentReply:
        self.acts.append(request)
        return SegmentReply(Segment(np.zeros((self.chunk, 7))))


def test_a_plan_is_followed_segment_by_segment_on_fresh_observations() -> None:
    env, policy = CountingEnv(solved_at=10 + 3 + 4 + 2), PlansFromDurations([3, -1, 4, 40])
    result = run_trial(env, policy, TRIAL)
    assert result.success
    assert result.num_steps == 19
    assert env.observed_at == [10, 13, 17]  # the plan's observation also serves its first segment
    assert [request.duration for request in policy.acts] == [4, 32]  # the first came with the plan; 40 is clamped
    assert [int(request.start[0]) for request in policy.acts] == [0, 2]  # a skipped waypoint is not a start
    assert [request.segment_index for request in policy.acts] == [1, 2]
    assert [decision.kind for decision in result.decisions] == ["plan", "segment", "segment", "segment"]
    assert (result.num_plans, result.num_segments) == (1, 3)


def test_a_zero_duration_ends_the_plan() -> None:
    env, policy = CountingEnv(), PlansFromDurations([5, 0, 9])
    result = run_trial(env, policy, TRIAL)
    assert not policy.acts
    assert result.num_plans == 10
    assert result.num_steps == 60


def test_a_plan_that_executes_nothing_steps_one_zero_action() -> None:
    env, policy = CountingEnv(), PlansFromDurations([-1, 0, 9])
    result = run_trial(env, policy, TRIAL)
    assert result.num_plans == TASK.max_steps
    assert not result.trajectory.actions.any()


def test_no_waypoints_end_the_episode() -> None:
    result = run_trial(CountingEnv(), PlansFromDurations([]), TRIAL)
    assert (result.success, result.num_steps, result.num_plans) == (False, 10, 1)


def test_success_during_the_wait_counts_and_asks_the_policy_nothing() -> None:
    policy = PlansFromDurations([5])
    result = run_trial(CountingEnv(solved_at=4), policy, TRIAL)
    assert (result.success, result.num_steps) == (True, 4)
    assert not policy.plans


def test_the_step_limit_cuts_a_segment_short_and_the_last_step_may_still_succeed() -> None:
    assert run_trial(CountingEnv(), PlansFromDurations([32]), TRIAL).num_steps == 60
    assert run_trial(CountingEnv(solved_at=60), PlansFromDurations([32]), TRIAL).success
    assert not run_trial(CountingEnv(solved_at=61), PlansFromDurations([32]), TRIAL).success


def test_the_trajectory_has_one_row_a_step_and_wait_steps_are_zero_actions() -> None:
    result = run_trial(CountingEnv(), PlansFromDurations([7]), TRIAL)
    assert result.trajectory.actions.shape == (60, 7)
    assert np.array_equal(result.trajectory.actions[:10], np.tile(NOOP_ACTION, (10, 1)))
    assert [int(state.qpos[0]) for state in result.trajectory.states] == list(range(1, 61))


def test_recording_can_be_off_and_every_step_is_a_sign_of_life() -> None:
    seen: list[int] = []
    settings = RolloutSettings(record_states=False, on_step=seen.append)
    result = run_trial(CountingEnv(), PlansFromDurations([7]), TRIAL, settings)
    assert not result.trajectory.states
    assert seen == list(range(1, 61))


def test_a_chunk_too_short_or_not_finite_is_an_error_and_not_an_outcome() -> None:
    with pytest.raises(PolicyOutputError, match="shape"):
        run_trial(CountingEnv(), PlansFromDurations([7], chunk=5), TRIAL)

    class Diverged(PlansFromDurations):
        def act(self, request: SegmentRequest) -> SegmentReply:
            return SegmentReply(Segment(np.full((32, 7), np.nan)))

    with pytest.raises(PolicyOutputError, match="finite"):
        run_trial(CountingEnv(), Diverged([7, 7]), TRIAL)
