"""One episode, as the protocol defines it, without Ray, torch or MuJoCo.

Protocol: reset to the trial's initial state, wait, then plan. Follow the plan's waypoints one segment at a time, each
on a fresh observation and starting at the waypoint just aimed at. Plan again when the plan is used up, until the task
is solved, the environment ends the episode, or the step limit is reached. Success during the wait steps counts.
`LoopOptions` vary this. With a latency, time passes between each observation and the execution of its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, cast

import numpy as np

from wpray.benchmarks.base import Environment
from wpray.policies.base import ChunkClient, PolicyClient, WaypointClient
from wpray.tracking import DeviationRule, track
from wpray.types import (
    MAX_SEGMENT_STEPS,
    PROPRIO_DIM,
    ActionSpec,
    ChunkReply,
    ChunkRequest,
    Decision,
    EpisodeResult,
    EpisodeTimes,
    Float32Array,
    FloatArray,
    Observation,
    ObservationSpec,
    PlanEnd,
    PlanReply,
    PlanRequest,
    SegmentReply,
    SegmentRequest,
    State,
    Step,
    Tracking,
    Trajectory,
    Trial,
    WaypointSpace,
)


class PolicyOutputError(RuntimeError):
    """Error for a policy's answer that cannot be executed."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Variants of an episode's loop; the names are those of the evaluation settings."""

    starts_from_actual: bool = False  # later segments start where the robot is, not at the waypoint just aimed at
    max_segments_per_replan: int = 0  # waypoints of a plan that may be followed, counted by index; 0: all
    strict_step_budget: bool = True  # no step beyond the limit; False: the current plan is followed to its end
    stop_on_d0: bool = (
        False  # a zero duration ends the episode, as the first of a plan only if two plans do so in a row
    )
    crop_scale: float | None = None  # share of the images' area that the policy sees
    replan_on: DeviationRule | None = None  # a segment that ends farther from its waypoint ends its plan
    latency_steps: int = 0  # control steps that pass between an observation and the execution of its answer
    uses_chunks_rest: bool = True  # meanwhile, what is left of a chunk is executed; False: the robot stands still


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Settings of an episode besides its trial."""

    num_steps_wait: int = 10  # actions that stand still while the objects settle
    record_states: bool = True
    on_step: Callable[[int], None] | None = None  # called with the step count, as a heartbeat
    loop: LoopOptions = LoopOptions()
    action: ActionSpec | None = None  # the benchmark's; None: the policy's, which says nothing of standing still


def run_trial(
    env: Environment, policy: PolicyClient, trial: Trial, settings: RolloutSettings | None = None
) -> EpisodeResult:
    """Run one episode of `trial` and return its outcome.

    Raises whatever the environment or the policy raises: an error is never an outcome.
    """
    kind = _ChunkEpisode if policy.spec.kind == "chunk" else _WaypointEpisode
    episode = kind(env, cast(Any, policy), trial, settings or RolloutSettings())
    episode.reset()
    episode.wait()
    episode.run()
    return episode.result()


_NOTHING_YET = Step(terminated=False)


@dataclass(slots=True)
class _Episode:
    """Episode under way, which counts and records its steps and calls."""

    env: Environment
    policy: PolicyClient
    trial: Trial
    settings: RolloutSettings
    last: Step = _NOTHING_YET
    ended: bool = False  # True if the policy has ended the episode
    actions: list[FloatArray] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # of the policy
    reward: float = 0.0  # sum of the steps'
    reset_s: float = 0.0
    env_s: float = 0.0
    policy_wait_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def action(self) -> ActionSpec:
        """Meaning of an action's numbers."""
        return self.settings.action or self.policy.spec.action

    @property
    def success(self) -> bool:
        """True if the task is solved."""
        return self.last.terminated

    @property
    def over(self) -> bool:
        """True if nothing more is requested of the policy."""
        limit = self.settings.num_steps_wait + self.trial.task.max_steps
        return self._stopped or self.ended or len(self.actions) >= limit

    @property
    def halted(self) -> bool:
        """True if no further step is taken, not even of the current plan."""
        return self.over if self.settings.loop.strict_step_budget else self._stopped

    @property
    def _stopped(self) -> bool:
        """True if the environment has ended the episode."""
        return self.last.terminated or self.last.truncated

    def reset(self) -> None:
        began = time.perf_counter()
        self.env.load(self.trial.task)
        self.env.reset(self.trial)
        self.reset_s = time.perf_counter() - began

    def wait(self) -> None:
        self.execute([self.action.stand_still()] * self.settings.num_steps_wait)

    def execute(self, actions: Iterable[FloatArray]) -> None:
        """Step through `actions` until they, or the episode, end."""
        for action in actions:
            if self.halted:
                return
            began = time.perf_counter()
            self.last = self.env.step(action)
            self.env_s += time.perf_counter() - began
            self.actions.append(action)
            self.reward += self.last.reward
            if self.settings.record_states:
                self.states.append(self.env.state())
            if self.settings.on_step is not None:
                self.settings.on_step(len(self.actions))

    def pass_latency(self, in_hand: Sequence[FloatArray] | FloatArray = ()) -> int:
        """Let the time of the last decision's answer pass; return how many actions `in_hand` were executed meanwhile.

        When they are used up, the robot stands still.
        """
        latency = self.settings.loop.latency_steps
        if not latency:
            return 0
        before = len(self.actions)
        self.execute(in_hand[:latency])
        executed = len(self.actions) - before
        self.execute([self._standing_still()] * (latency - executed))
        self.decisions[-1] = replace(self.decisions[-1], latency_steps=len(self.actions) - before)
        return executed

    def _standing_still(self) -> FloatArray:
        """Return the action that moves nothing and keeps the last command of the gripper, or the last target."""
        spec, still = self.policy.spec.action, self.action.stand_still()
        last = self.actions[-1] if self.actions else still
        if spec.control != "delta_eef":
            return last
        return still if spec.gripper == "none" else np.append(still[:-1], last[-1])

    def observe(self) -> Observation:
        return self.env.observe(_cropped(self.policy.spec.observation, self.settings.loop.crop_scale))

    def result(self) -> EpisodeResult:
        wall_s = time.perf_counter() - self.started
        actions = np.array(self.actions, dtype=np.float64).reshape(-1, self.action.dim)
        scene = self.env.scene() if self.settings.record_states else None
        return EpisodeResult(
            trial=self.trial,
            success=self.success,
            num_steps=len(self.actions),
            num_plans=0,
            num_segments=0,
            decisions=tuple(self.decisions),
            trajectory=Trajectory(actions, tuple(self.states), scene),
            times=EpisodeTimes(self.reset_s, self.env_s, self.env.render_s, self.policy_wait_s, wall_s),
            truncated=self.last.truncated,
            reward=self.reward,
            metrics=self.metrics | {f"progress/{name}": value for name, value in self.last.progress.items()},
        )


@dataclass(slots=True)
class _ChunkEpisode(_Episode):
    """Episode of a chunk policy."""

    policy: ChunkClient
    num_chunks: int = 0
    memory: bytes | None = None  # of the last reply
    rest: Sequence[FloatArray] | FloatArray = ()  # of the last chunk, for the next one's latency

    def run(self) -> None:
        while not self.over:
            chunk, steps = self.predict()
            # What was executed meanwhile stands for as many actions at the chunk's beginning, whose time has passed.
            first = min(self.pass_latency(self.rest), len(chunk) - steps)
            before = len(self.actions)
            self.execute(chunk[first : first + steps])
            self.rest = chunk[first + steps :]
            self.decisions[-1] = replace(self.decisions[-1], steps=len(self.actions) - before)
            self.ended = steps == 0

    def predict(self) -> tuple[FloatArray, int]:
        """Return the chunk as far as it may be used, and how many actions of it are executed before the next request.

        Both are nothing if the policy ends the episode.
        """
        request = ChunkRequest(self.trial, self.num_chunks, self.observe(), self.memory)
        began = time.perf_counter()
        reply = self.policy.predict(request)
        waited = time.perf_counter() - began
        self.policy_wait_s += waited
        self.memory = reply.memory
        chunk, steps = self._usable(reply)
        self.metrics.update(_numbers(reply.metrics))
        self.decisions.append(self._decision(reply, steps, began, waited))
        self.num_chunks += 1
        return chunk, steps

    def _usable(self, reply: ChunkReply) -> tuple[FloatArray, int]:
        """Return the reply's actions, checked, without those that are never used; and how many are executed."""
        if reply.done:
            return np.zeros((0, self.action.dim)), 0
        loop, width = self.settings.loop, self.action.dim
        executed = _first_actions(reply.actions, self.policy.spec.execute_steps, width)
        if not (loop.latency_steps and loop.uses_chunks_rest):
            return executed, len(executed)
        parts = [reply.actions] if reply.rest is None or not len(reply.rest) else [reply.actions, reply.rest]
        return np.concatenate([_first_actions(part, 0, width) for part in parts]), len(executed)

    def result(self) -> EpisodeResult:
        return replace(_Episode.result(self), num_chunks=self.num_chunks)

    def _decision(self, reply: ChunkReply, duration: int, began: float, waited: float) -> Decision:
        return Decision(
            kind="chunk",
            step=len(self.actions),
            plan_index=None,
            segment_index=None,
            waypoints=None,
            durations=None,
            waypoint_index=None,
            duration=duration,
            wait_s=waited,
            timing=reply.timing,
            asked_s=began - self.started,
            chunk_index=self.num_chunks,
        )


@dataclass(slots=True)
class _WaypointEpisode(_Episode):
    """Episode of a policy that plans waypoints."""

    policy: WaypointClient
    empty_plans: int = 0  # consecutive plans whose first duration is zero
    num_plans: int = 0
    num_segments: int = 0

    def run(self) -> None:
        while not self.over:
            reply = self.plan()
            if len(reply.plan.waypoints) == 0:
                break
            if not self.follow(reply) and not self.ended:
                self.execute([self.action.stand_still()])

    def plan(self) -> PlanReply:
        request = PlanRequest(self.trial, self.num_plans, self.num_segments, self.observe())
        began = time.perf_counter()
        reply = self.policy.plan(request)
        waited = time.perf_counter() - began
        self.policy_wait_s += waited
        self.decisions.append(self._plan_decision(request, reply, began, waited))
        self.num_plans += 1
        self.pass_latency()
        return reply

    def follow(self, reply: PlanReply) -> int:
        """Execute the plan's segments and return the number of executed actions."""
        self._check_space(reply.space)
        before, at, skipped = len(self.actions), len(self.decisions) - 1, 0
        start: Float32Array | None = reply.plan.start
        first = None if reply.first is None else SegmentReply(reply.first, reply.timing)
        end: PlanEnd | None = None
        for index, (waypoint, duration) in enumerate(zip(reply.plan.waypoints, reply.plan.durations, strict=True)):
            end = self._plan_end(index, duration)
            if end is not None:
                break
            if duration < 0:
                skipped += 1
                continue
            steps = min(int(duration), MAX_SEGMENT_STEPS)
            if first is None:
                answer = self.act(index, start, waypoint, steps)
            else:
                answer = first
                self._note_segment(index, steps, answer, waited=0.0)
            self.execute(_executable(answer.segment.actions, steps, self.action.dim))
            end = self._arrive(waypoint, reply.space)
            if end is not None:
                break
            first, start = None, None if self.settings.loop.starts_from_actual else waypoint
        self.decisions[at] = replace(self.decisions[at], plan_end=end or "used_up", skipped=skipped)
        return len(self.actions) - before

    def _note_segment(self, index: int, steps: int, answer: SegmentReply, waited: float) -> None:
        """Note the answer to waypoint `index`, of which `steps` actions are executed."""
        self.decisions.append(self._segment_decision(index, steps, waited, answer))
        self.num_segments += 1
        self.empty_plans = 0

    def _plan_end(self, index: int, duration: int) -> PlanEnd | None:
        """Return why the plan ends at its waypoint `index`; None if it continues. This may end the episode."""
        loop = self.settings.loop
        if self._stopped:  # while the plan's latency passed
            return self._stop_reason
        if 0 < loop.max_segments_per_replan <= index:
            return "segment_limit"
        if duration == 0:
            if loop.stop_on_d0:
                self.empty_plans += index == 0
                self.ended = index > 0 or self.empty_plans > 1
            return "zero_duration"
        return "step_budget" if self.halted else None

    def _arrive(self, waypoint: Float32Array, space: WaypointSpace | None) -> PlanEnd | None:
        """Record where the last segment ended; return why that ends its plan, if it does."""
        decision = self.decisions[-1]
        steps = len(self.actions) - decision.step - (decision.latency_steps or 0)
        tracking = None if space is None else self._track(space, waypoint)
        self.decisions[-1] = replace(decision, steps=steps, tracking=tracking)
        if self._stopped:
            return self._stop_reason
        if steps != decision.duration:
            return "step_budget"
        rule = self.settings.loop.replan_on
        return "deviation" if rule and tracking and rule.calls_for_a_plan(tracking) else None

    @property
    def _stop_reason(self) -> PlanEnd:
        return "success" if self.success else "truncated"

    def _track(self, space: WaypointSpace, waypoint: Float32Array) -> Tracking:
        blind = ObservationSpec(cameras={}, proprio=self.policy.spec.proprio)
        return track(space, waypoint, self.env.observe(blind).proprio)

    def _check_space(self, space: WaypointSpace | None) -> None:
        if space is None and self.settings.loop.replan_on is not None:
            raise PolicyOutputError(
                "replan_on_deviation needs to know the space of a plan's waypoints (PlanReply.space), and this policy "
                "does not give it"
            )

    def act(self, index: int, start: Float32Array | None, end: Float32Array, duration: int) -> SegmentReply:
        """Return the answer to waypoint `index`, which is `end`."""
        plan_index = self.num_plans - 1
        request = SegmentRequest(self.trial, plan_index, self.num_segments, self.observe(), start, end, duration)
        began = time.perf_counter()
        reply = self.policy.act(request)
        waited = time.perf_counter() - began
        self.policy_wait_s += waited
        self._note_segment(index, duration, reply, waited)
        self.pass_latency()
        return reply

    def result(self) -> EpisodeResult:
        return replace(_Episode.result(self), num_plans=self.num_plans, num_segments=self.num_segments)

    def _plan_decision(self, request: PlanRequest, reply: PlanReply, began: float, waited: float) -> Decision:
        width = max(PROPRIO_DIM, len(request.observation.proprio))  # without the padding
        return Decision(
            kind="plan",
            step=len(self.actions),
            plan_index=self.num_plans,
            segment_index=self.num_segments,
            waypoints=reply.plan.waypoints[:, :width],
            durations=reply.plan.durations,
            waypoint_index=None,
            duration=None,
            wait_s=waited,
            timing=replace(reply.timing, expert_s=None),
            asked_s=began - self.started,
        )

    def _segment_decision(self, waypoint_index: int, duration: int, waited: float, answer: SegmentReply) -> Decision:
        return Decision(
            kind="segment",
            step=len(self.actions),
            plan_index=self.num_plans - 1,
            segment_index=self.num_segments,
            waypoints=None,
            durations=None,
            waypoint_index=waypoint_index,
            duration=duration,
            wait_s=waited,
            timing=replace(answer.timing, planner_s=None),
            asked_s=time.perf_counter() - self.started - waited,
        )


def _cropped(spec: ObservationSpec, scale: float | None) -> ObservationSpec:
    """Return `spec` with every camera's view cropped to `scale` of its area; as it is if that is None."""
    if scale is None:
        return spec
    return replace(spec, cameras={role: replace(view, crop_scale=scale) for role, view in spec.cameras.items()})


def _first_actions(chunk: object, steps: int, width: int) -> FloatArray:
    """Return the first `steps` actions of a chunk as an array, or all of them if 0, checked."""
    try:
        actions = np.asarray(chunk, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PolicyOutputError(f"the policy's action chunk is no array of numbers: {error}") from error
    actions = np.atleast_1d(actions)
    return _executable(actions, steps or max(1, len(actions)), width)


def _executable(chunk: FloatArray, steps: int, width: int) -> FloatArray:
    """Return the first `steps` actions, checked: NaN or a short chunk would fail silently inside the simulator."""
    actions = chunk[:steps]
    if actions.shape != (steps, width):
        wanted = f"({steps} or more, {width})"
        raise PolicyOutputError(f"the policy's action chunk has shape {chunk.shape}, expected {wanted}")
    if not np.isfinite(actions).all():
        raise PolicyOutputError("the policy's action chunk holds a value that is not finite")
    return actions


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a reply, checked: a name that is not a text would fail after the episode."""
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, Real):
            raise PolicyOutputError(f"the policy's metric {name!r} is {value!r}, which is no named number")
    return {name: float(value) for name, value in metrics.items()}
