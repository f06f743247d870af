"""The episode loop against hand-made environments and policies: every clause of the protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from wpray.benchmarks.views import center_crop, policy_view
from wpray.policies.base import PolicySpec
from wpray.rollout import LoopOptions, PolicyOutputError, RolloutSettings, run_trial
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    EpisodeResult,
    FloatArray,
    ImageArray,
    Observation,
    ObservationSpec,
    PlanReply,
    PlanRequest,
    SceneState,
    Segment,
    SegmentReply,
    SegmentRequest,
    State,
    Step,
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

    def step(self, action: FloatArray) -> Step:
        self.steps += 1
        return Step(terminated=self.steps == self.solved_at, progress={"steps": float(self.steps)})

    def observe(self, spec: ObservationSpec) -> Observation:
        self.observed_at.append(self.steps)
        return Observation(np.full(8, float(self.steps)))

    def state(self) -> State:
        return {"qpos": np.full(1, float(self.steps))}

    def scene(self) -> SceneState:
        return SceneState(np.zeros((1, 3)), np.zeros((1, 4)))

    def render(self, state: State, scene: SceneState, *, camera: str, height: int, width: int) -> ImageArray:
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
    assert np.array_equal(result.trajectory.actions[:10], np.zeros((10, 7)))
    assert [int(state["qpos"][0]) for state in result.trajectory.states] == list(range(1, 61))


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


def _run(policy: PlansFromDurations, env: CountingEnv | None = None, **options: object) -> EpisodeResult:
    settings = RolloutSettings(loop=LoopOptions(**options))  # type: ignore[arg-type]
    return run_trial(env or CountingEnv(), policy, TRIAL, settings)


def test_later_segments_may_start_where_the_robot_is() -> None:
    policy = PlansFromDurations([3, 4, 40])
    _run(policy, CountingEnv(solved_at=30), starts_from_actual=True)
    assert [request.start for request in policy.acts] == [None, None]
    assert [request.observation.proprio[0] for request in policy.acts] == [13, 17]


@pytest.mark.parametrize(("most", "plans", "durations"), [(0, 2, [5, 9]), (1, 10, []), (2, 5, [5]), (3, 5, [5])])
def test_a_plan_may_be_followed_for_some_segments_only(most: int, plans: int, durations: list[int]) -> None:
    """Counted by index: a waypoint that is skipped counts. The first segment comes with the plan."""
    policy = PlansFromDurations([5, -1, 5, 9, 9] if most == 3 else [5, 5, 9, 9])
    result = _run(policy, max_segments_per_replan=most)
    assert result.num_plans == plans
    assert [request.duration for request in policy.acts][: len(durations)] == durations
    assert result.num_steps == 60


def test_a_limit_of_segments_counts_before_a_zero_duration() -> None:
    """With both, as the branch that knows the limit: the plan ends, not the episode."""
    result = _run(PlansFromDurations([5, 0]), max_segments_per_replan=1, stop_on_d0=True)
    assert (result.num_plans, result.num_steps) == (10, 60)


def test_a_budget_that_is_not_strict_lets_the_plan_in_hand_end() -> None:
    policy = PlansFromDurations([32, 20, 0])
    result = _run(policy, strict_step_budget=False)
    assert (result.num_plans, result.num_steps) == (1, 62)
    assert [request.duration for request in policy.acts] == [20]
    assert _run(policy).num_steps == 60
    assert _run(policy, CountingEnv(solved_at=61), strict_step_budget=False).success, "in the overrun, too"
    result = _run(PlansFromDurations([32, 32, 32]), CountingEnv(solved_at=61), strict_step_budget=False)
    assert (result.num_steps, result.num_segments) == (61, 2)


class _Plans(PlansFromDurations):
    """Each plan has its own durations; the last goes on."""

    def __init__(self, *plans: list[int]) -> None:
        super().__init__(plans[0])
        self._left = list(plans)

    def plan(self, request: PlanRequest) -> PlanReply:
        self.durations = np.array(self._left[0] if len(self._left) == 1 else self._left.pop(0), dtype=np.int64)
        return super().plan(request)


@pytest.mark.parametrize(
    ("plans", "steps", "num_plans"),
    [
        ([[5, 0, 9]], 15, 1),  # after a segment: at once
        ([[0]], 11, 2),  # first of a plan: one zero action, then the second ends it
        ([[0], [5], [0], [7, 0]], 10 + 1 + 5 + 1 + 7, 4),  # a segment between them: they are not in a row
        ([[0], [-1, 0]], 11, 2),  # second in its plan, whatever was skipped
    ],
)
def test_a_zero_duration_may_end_the_episode(plans: list[list[int]], steps: int, num_plans: int) -> None:
    result = _run(_Plans(*plans), stop_on_d0=True)
    assert (result.num_steps, result.num_plans, result.success) == (steps, num_plans, False)


class _Seeing(CountingEnv):
    def observe(self, spec: ObservationSpec) -> Observation:
        picture = np.random.default_rng(self.steps).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        shown = {"base": picture, "wrist": picture[::-1]}
        views = {role: policy_view(shown[role], view) for role, view in spec.cameras.items()}
        return replace(super().observe(spec), images=views)


class _GivesUp(CountingEnv):
    """Ends the episode at its twelfth step, the task unsolved."""

    def step(self, action: FloatArray) -> Step:
        return replace(super().step(action), truncated=self.steps == 12)


@pytest.mark.parametrize("strict", [True, False])
def test_a_truncated_episode_ends_at_once_and_is_a_failure(strict: bool) -> None:
    result = _run(PlansFromDurations([5]), _GivesUp(), strict_step_budget=strict)
    assert (result.success, result.num_steps) == (False, 12)


class _Pays(_GivesUp):
    """Pays for every step."""

    def step(self, action: FloatArray) -> Step:
        return replace(super().step(action), reward=0.5)


def test_rewards_add_up_and_an_episode_says_that_it_was_truncated() -> None:
    result = _run(PlansFromDurations([5]), _Pays())
    assert (result.truncated, result.reward) == (True, 6.0)
    solved = _run(PlansFromDurations([5]), CountingEnv(solved_at=13))
    assert (solved.truncated, solved.reward) == (False, 0.0)


def test_the_last_steps_progress_is_the_episodes() -> None:
    result = _run(PlansFromDurations([5]), CountingEnv(solved_at=13))
    assert result.success
    assert result.metrics == {"progress/steps": 13.0}


def test_a_policy_may_see_the_middle_of_both_images() -> None:
    policy, whole = PlansFromDurations([5]), PlansFromDurations([5])
    policy.spec = whole.spec = replace(policy.spec, images=True)
    _run(policy, _Seeing(), crop_scale=0.9)
    _run(whole, _Seeing())
    for cropped, full in zip(policy.plans, whole.plans, strict=True):
        for name in ("base_image", "wrist_image"):
            image = getattr(full.observation, name)
            assert np.array_equal(getattr(cropped.observation, name), center_crop(image, 0.9))
            assert not np.array_equal(getattr(cropped.observation, name), image)


class Chunks:
    """Gives chunks of `length` actions, numbered; remembers what it was asked."""

    def __init__(self, length: int = 8, execute_steps: int = 0, actions: object = None) -> None:
        self.spec = PolicySpec("toy", False, False, 0, 1, kind="chunk", execute_steps=execute_steps)
        self.length, self.actions = length, actions
        self.asked: list[ChunkRequest] = []

    def predict(self, request: ChunkRequest) -> ChunkReply:
        self.asked.append(request)
        actions = np.full((self.length, 7), request.chunk_index / 100) if self.actions is None else self.actions
        metrics = (
            {"calls": float(len(self.asked)), "first": 1.0} if request.chunk_index == 0 else {"calls": len(self.asked)}
        )
        return ChunkReply(actions, metrics=metrics)  # type: ignore[arg-type]


@pytest.mark.parametrize(("execute_steps", "each"), [(0, 8), (3, 3), (8, 8)])
def test_a_chunk_policy_is_asked_again_after_the_steps_that_it_says(execute_steps: int, each: int) -> None:
    env, policy = CountingEnv(solved_at=10 + 2 * each + 1), Chunks(execute_steps=execute_steps)
    result = run_trial(env, policy, TRIAL)
    assert (result.success, result.num_steps, result.num_chunks) == (True, 11 + 2 * each, 3)
    assert (result.num_plans, result.num_segments) == (0, 0)
    assert env.observed_at == [10, 10 + each, 10 + 2 * each]
    assert [request.chunk_index for request in policy.asked] == [0, 1, 2]
    assert result.trajectory.actions[10:, 0].tolist() == [0.0] * each + [0.01] * each + [0.02]
    policys = {name: value for name, value in result.metrics.items() if not name.startswith("progress/")}
    assert policys == {"calls": 3.0, "first": 1.0}  # the last value of each counts


def test_a_chunks_decision_invents_no_waypoints() -> None:
    result = run_trial(CountingEnv(), Chunks(execute_steps=5), TRIAL)
    assert result.num_steps == 60 and len(result.decisions) == result.num_chunks == 10
    assert [decision.step for decision in result.decisions] == list(range(10, 60, 5))
    for index, decision in enumerate(result.decisions):
        assert (decision.kind, decision.chunk_index, decision.duration, decision.steps) == ("chunk", index, 5, 5)
        nothing = (decision.plan_index, decision.segment_index, decision.waypoints, decision.durations)
        assert nothing == (None,) * 4 and decision.waypoint_index is None


def test_a_step_budget_that_is_not_strict_lets_the_chunk_in_hand_end() -> None:
    settings = RolloutSettings(loop=LoopOptions(strict_step_budget=False))
    assert run_trial(CountingEnv(), Chunks(length=16), TRIAL, settings).num_steps == 10 + 4 * 16


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.zeros((0, 7)), "shape (0, 7), expected (1 or more, 7)"),
        (np.zeros((8, 6)), "shape (8, 6), expected (8 or more, 7)"),
        (np.zeros(7), "shape (7,), expected"),
        (0.0, "shape (1,), expected"),
        (np.full((8, 7), np.inf), "not finite"),
        (["left", "right"], "no array of numbers"),
        ([[0.0] * 7, [0.0] * 6], "no array of numbers"),
    ],
)
def test_what_cannot_be_executed_is_the_policys_error(actions: object, said: str) -> None:
    with pytest.raises(PolicyOutputError, match=re.escape(said)):
        run_trial(CountingEnv(), Chunks(actions=actions), TRIAL)


def test_a_chunk_shorter_than_what_is_executed_is_an_error() -> None:
    with pytest.raises(PolicyOutputError, match=re.escape("shape (4, 7), expected (6 or more, 7)")):
        run_trial(CountingEnv(), Chunks(length=4, execute_steps=6), TRIAL)


def test_a_metric_that_is_no_number_is_the_policys_error() -> None:
    class Odd(Chunks):
        def predict(self, request: ChunkRequest) -> ChunkReply:
            return ChunkReply(np.zeros((8, 7)), metrics={"mood": "good"})  # type: ignore[dict-item]

    with pytest.raises(PolicyOutputError, match="metric 'mood' is 'good'"):
        run_trial(CountingEnv(), Odd(), TRIAL)
