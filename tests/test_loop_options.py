"""The loop's options together, against a plain loop written from their descriptions, and what it records."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wpray.config import Config
from wpray.orchestration.actors import rollout_settings
from wpray.policies.base import PolicySpec
from wpray.rollout import PolicyOutputError, run_trial
from wpray.tracking import PhysicalSpace
from wpray.types import (
    EpisodeResult,
    FloatArray,
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

MAX_STEPS, WAIT = 70, 3
TRIAL = Trial(Task("toy", 0, "toy_task", "do it", num_trials=1, max_steps=MAX_STEPS), 0, seed=0)


class _Wandering:
    """A robot whose state after n steps is a function of n; solved at step `solved_at`."""

    def __init__(self, seed: int, solved_at: int) -> None:
        self._states = np.cumsum(np.random.default_rng(seed).normal(0, 0.03, (600, 8)), axis=0)
        self.solved_at, self.steps, self.render_s = solved_at, 0, 0.0

    def load(self, task: Task) -> None: ...

    def reset(self, trial: Trial) -> None:
        self.steps = 0

    def step(self, action: FloatArray) -> Step:
        self.steps += 1
        return Step(terminated=self.steps == self.solved_at)

    def observe(self, spec: ObservationSpec) -> Observation:
        return Observation(self.at(self.steps))

    def at(self, steps: int) -> FloatArray:
        return self._states[steps]

    def state(self) -> State:
        raise NotImplementedError

    def scene(self) -> SceneState:
        raise NotImplementedError

    def render(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


class _Planner:
    """Plan n is a function of n. Notes each segment that is followed: steps so far, start, end, duration."""

    spec = PolicySpec("toy", images=False, privileged=False, num_gpus=0, max_batch_size=1)

    def __init__(self, seed: int, env: _Wandering, limit: int, space: PhysicalSpace | None = None) -> None:
        """`limit`: of waypoints that are followed of a plan; 0: none."""
        self._seed, self._env, self._limit, self._space = seed, env, limit, space
        self.plans: list[int] = []
        self.segments: list[tuple[int, list[float], list[float], int]] = []

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Waypoints (M, 32), zero-padded, and durations (M,)."""
        rng = np.random.default_rng((self._seed, number))
        waypoints = np.pad(rng.normal(0, 0.2, (5, 8)), ((0, 0), (0, 24))).astype(np.float32)
        return waypoints, rng.choice([-1, 0, 2, 5, 9, 33], 5, p=[0.15, 0.15, 0.2, 0.2, 0.2, 0.1])

    def plan(self, request: PlanRequest) -> PlanReply:
        waypoints, durations = self.of(len(self.plans))
        self.plans.append(self._env.steps)
        start = np.pad(request.observation.proprio, (0, 24)).astype(np.float32)
        index = first_executable(durations)
        first = None
        if index is not None:
            first = Segment(np.zeros((32, 7)))
            if not 0 < self._limit <= index:
                self._note(start, waypoints[index], min(int(durations[index]), 32))
        return PlanReply(WaypointPlan(start, waypoints, durations), first, space=self._space)

    def act(self, request: SegmentRequest) -> SegmentReply:
        measured = np.pad(request.observation.proprio, (0, 24)).astype(np.float32)
        self._note(measured if request.start is None else request.start, request.end, request.duration)
        return SegmentReply(Segment(np.zeros((32, 7))))

    def _note(self, start: np.ndarray, end: np.ndarray, duration: int) -> None:
        self.segments.append((self._env.steps, start.tolist(), end.tolist(), duration))


class _Plain:
    """The evaluation loop as its description says it, step by step."""

    def __init__(self, config: Config, planner: _Planner, env: _Wandering) -> None:
        self.config, self.planner, self.env = config, planner, env
        self.budget, self.latency = MAX_STEPS + WAIT, math.ceil(config.latency.extra_ms / 50)  # 20 steps a second
        self.t, self.done, self.zeros_in_a_row = WAIT, env.solved_at <= WAIT, 0
        self.plans: list[int] = []
        self.segments: list[Any] = []
        self.why: list[str] = []
        self.deviations = 0
        if self.done:
            self.t = env.solved_at

    def run(self) -> None:
        while self.t < self.budget and not self.done:
            self.moved = 0
            terminate, why = self._follow(len(self.plans))
            self.why.append("success" if self.done else why)
            if terminate:
                return
            if self.moved == 0:
                self._within_budget(1)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.t += 1
            if self.t == self.env.solved_at:
                self.done = True
                return

    def _within_budget(self, count: int) -> int:
        allowed = 0 if self.done else count
        allowed = min(allowed, self.budget - self.t) if self.config.strict_step_budget else allowed
        self._steps(allowed)
        return allowed

    def _measured(self) -> list[float]:
        return np.pad(self.env.at(self.t), (0, 24)).astype(np.float32).tolist()

    def _follow(self, number: int) -> tuple[bool, str]:
        config = self.config
        waypoints, durations = self.planner.of(number)
        self.plans.append(self.t)
        asked, measured = self.t, self._measured()
        self._within_budget(self.latency)
        start: list[float] | None = None
        came_with_the_plan = self._note_first(asked, measured, waypoints, durations)
        for index, d in enumerate(durations):
            end = self._end_before(index, int(d))
            if end is not None:
                return end
            if d < 0:
                continue
            steps = min(int(d), 32)
            if index != came_with_the_plan:
                begin = self._measured() if start is None or config.segment_start_from == "actual" else start
                self.segments.append((self.t, begin, waypoints[index].tolist(), steps))
                self._within_budget(self.latency)
            self.zeros_in_a_row = 0
            allowed = self._within_budget(steps)
            self.moved += allowed
            start = waypoints[index].tolist()
            if self.done or allowed < steps:
                return False, "step_budget"
            if config.replan_on_deviation and self._deviation(waypoints[index]) > config.deviation_threshold:
                self.deviations += 1
                return False, "deviation"
        return False, "used_up"

    def _end_before(self, index: int, d: int) -> tuple[bool, str] | None:
        if self.done:
            return False, "success"
        if 0 < self.config.max_segments_per_replan <= index:
            return False, "segment_limit"
        if d == 0:
            return self._zero(index), "zero_duration"
        if d > 0 and self.config.strict_step_budget and self.t >= self.budget:
            return False, "step_budget"
        return None

    def _note_first(
        self, asked: int, measured: list[float], waypoints: np.ndarray, durations: np.ndarray
    ) -> int | None:
        """Note the segment that is asked for together with its plan; return its index."""
        index, most = first_executable(durations), self.config.max_segments_per_replan
        if index is None or 0 < most <= index:
            return None
        self.segments.append((asked, measured, waypoints[index].tolist(), min(int(durations[index]), 32)))
        return index

    def _zero(self, index: int) -> bool:
        if not self.config.stop_on_d0:
            return False
        if index > 0:
            return True
        self.zeros_in_a_row += 1
        return self.zeros_in_a_row == 2

    def _deviation(self, waypoint: np.ndarray) -> float:
        differences = [float(np.float32(a) - np.float32(b)) for a, b in zip(self._measured(), waypoint, strict=True)]
        if self.config.deviation_metric == "linf":
            return max(abs(value) for value in differences[:6])
        return math.sqrt(sum(value * value for value in differences[:6]))


def _options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "num_steps_wait": WAIT,
        "record": "none",
        "max_segments_per_replan": int(rng.choice([0, 0, 1, 2, 3])),
        "segment_start_from": str(rng.choice(["predicted", "actual"])),
        "replan_on_deviation": bool(rng.integers(2)),
        "deviation_threshold": float(rng.choice([0.3, 0.5, 0.8])),
        "deviation_metric": str(rng.choice(["l2", "linf"])),
        "stop_on_d0": bool(rng.integers(2)),
        "strict_step_budget": bool(rng.integers(2)),
    }


def _both(seed: int, **options: Any) -> tuple[EpisodeResult, _Planner, _Plain]:
    rng = np.random.default_rng(seed)
    config = Config.model_validate({**_options(rng), **options})
    env = _Wandering(seed, int(rng.choice([2, 40, 71, 80, 10_000])))
    planner = _Planner(seed, env, config.max_segments_per_replan, PhysicalSpace())
    plain = _Plain(config, planner, env)
    result = run_trial(env, planner, TRIAL, rollout_settings(config))
    plain.run()
    return result, planner, plain


@pytest.mark.parametrize("seed", range(150))
def test_any_options_mean_what_the_plain_loop_does(seed: int) -> None:
    result, planner, plain = _both(seed)
    assert (planner.plans, planner.segments) == (plain.plans, plain.segments)
    assert (result.num_steps, result.success) == (plain.t, plain.done)
    plans = [decision for decision in result.decisions if decision.kind == "plan"]
    assert [decision.plan_end for decision in plans] == plain.why


@pytest.mark.parametrize("seed", range(150))
def test_they_do_so_if_every_answer_takes_its_time(seed: int) -> None:
    """Of a segment nothing is left at its waypoint, so that both modes are the same."""
    extra_ms = [1, 50, 51, 150, 400, 2000][seed % 6]
    result, planner, plain = _both(seed, latency={"extra_ms": extra_ms, "mode": ["hold", "freeze"][seed // 6 % 2]})
    assert (planner.plans, planner.segments) == (plain.plans, plain.segments)
    assert (result.num_steps, result.success) == (plain.t, plain.done)
    plans = [decision for decision in result.decisions if decision.kind == "plan"]
    assert [decision.plan_end for decision in plans] == plain.why
    passed = [decision.latency_steps for decision in result.decisions if decision.latency_steps is not None]
    assert len(passed) >= len(plans) and max(passed, default=plain.latency) <= plain.latency
    assert not result.trajectory.actions.any(), "the robot stands still, and its gripper has had no command"


def test_the_cases_between_them_hold_every_reason() -> None:
    reasons = [reason for seed in range(150) for reason in _both(seed)[2].why]
    assert set(reasons) == {"used_up", "zero_duration", "segment_limit", "deviation", "step_budget", "success"}
    assert all(reasons.count(reason) >= 5 for reason in set(reasons))


@pytest.mark.parametrize("seed", range(0, 150, 10))
def test_a_segment_notes_where_it_was_to_end_and_where_it_ended(seed: int) -> None:
    result, _, _ = _both(seed)
    env = _Wandering(seed, 0)
    plans = [decision for decision in result.decisions if decision.kind == "plan"]
    for segment in (decision for decision in result.decisions if decision.kind == "segment"):
        assert segment.tracking is not None and segment.steps is not None and segment.duration is not None
        assert plans[segment.plan_index].waypoints is not None
        planned = plans[segment.plan_index].waypoints[segment.waypoint_index]
        reached = env.at(segment.step + segment.steps)
        assert segment.tracking.planned_state.tolist() == planned.tolist()
        assert segment.tracking.reached_state.tolist() == reached.astype(np.float32).tolist()
        assert segment.tracking.planned_pose.tolist() == planned[:6].tolist()
        assert segment.tracking.error.tolist() == (reached.astype(np.float32) - planned).tolist()
        assert segment.tracking.planned_open == (planned[6] > np.float32(0.02))
        assert segment.tracking.reached_open == (np.float32(reached[6]) > np.float32(0.02))
        assert segment.steps == segment.duration or segment is result.decisions[-1]
    for plan in plans:
        followed = [
            d.waypoint_index for d in result.decisions if d.kind == "segment" and d.plan_index == plan.plan_index
        ]
        last = max((index for index in followed if index is not None), default=-1)
        assert plan.durations is not None and plan.skipped is not None
        assert plan.skipped >= sum(plan.durations[: last + 1] < 0)


@pytest.mark.parametrize("seed", range(0, 150, 10))
def test_without_a_known_space_the_same_happens_and_nothing_is_noted(seed: int) -> None:
    result, planner, _ = _both(seed, replan_on_deviation=False)
    rng = np.random.default_rng(seed)
    config = Config.model_validate({**_options(rng), "replan_on_deviation": False})
    env = _Wandering(seed, int(rng.choice([2, 40, 71, 80, 10_000])))
    silent = _Planner(seed, env, config.max_segments_per_replan)
    other = run_trial(env, silent, TRIAL, rollout_settings(config))
    assert (silent.plans, silent.segments) == (planner.plans, planner.segments)
    assert other.trajectory.actions.tobytes() == result.trajectory.actions.tobytes()
    assert all(decision.tracking is None for decision in other.decisions)
    assert [d.plan_end for d in other.decisions] == [d.plan_end for d in result.decisions]


def test_a_deviation_of_waypoints_of_an_unknown_space_is_refused() -> None:
    env = _Wandering(0, 10_000)
    settings = rollout_settings(Config(replan_on_deviation=True, record="none"))
    with pytest.raises(PolicyOutputError, match=r"replan_on_deviation needs .*PlanReply\.space"):
        run_trial(env, _Planner(0, env, 0), TRIAL, settings)
