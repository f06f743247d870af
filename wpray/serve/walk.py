"""An episode of a waypoint policy, one request at a time: what `rollout.py` does in a loop, with its state in a value.

Each step answers with the actions up to the next waypoint. Its state goes out with the answer and comes back with the
next request, or is kept for the connection, so that any server of the same policy can answer any request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from wpray.errors import InvalidRequestError
from wpray.policies.remote import arrays
from wpray.rollout import LoopOptions
from wpray.tracking import track
from wpray.types import (
    MAX_SEGMENT_STEPS,
    ActionSpec,
    Float32Array,
    FloatArray,
    IntArray,
    Observation,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Timing,
    Trial,
    WaypointSpace,
)


@dataclass(frozen=True, slots=True)
class WalkState:
    """Progress of an episode: the plan in hand, and the waypoint that comes next."""

    plans: int = 0  # made so far
    segments: int = 0  # executed so far
    empty_plans: int = 0  # consecutive plans whose first duration is 0
    waypoints: Float32Array = field(default_factory=lambda: np.zeros((0, 1), np.float32))  # of the plan in hand
    durations: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    following: int = 0  # index of the waypoint that comes next
    start: Float32Array | None = None  # start of the segment that leads there

    def packed(self) -> bytes:
        """Return the state as bytes."""
        return arrays.pack({name: getattr(self, name) for name in (item.name for item in fields(self))})

    @classmethod
    def unpacked(cls, data: Any) -> WalkState:
        """Return the state that was `packed`. Raises InvalidRequestError for anything else."""
        try:
            found = arrays.unpack(data)
            state = cls(**found)
            counts = (state.plans, state.segments, state.empty_plans, state.following)
            sound = all(type(count) is int and 0 <= count < 1 << 31 for count in counts)
            plan = state.waypoints.ndim == 2 and state.durations.shape == state.waypoints.shape[:1]
            begins = state.start is None or state.start.shape == state.waypoints.shape[1:]
            kinds = state.waypoints.dtype == np.float32 and state.durations.dtype == np.int64
        except (TypeError, AttributeError, arrays.MalformedError) as error:
            raise InvalidRequestError(f"memory: is none that this server gave ({error})") from error
        if not (sound and plan and begins and kinds and np.isfinite(state.waypoints).all()):
            raise InvalidRequestError("memory: is none that this server gave")
        return state


@dataclass(frozen=True, slots=True)
class WalkStep:
    """Actions to execute next, and the state after them."""

    actions: FloatArray  # (d, A)
    state: WalkState
    done: bool = False  # the policy ends the episode, and `actions` are not executed
    planned: bool = False  # the plan is a new one
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Walker:
    """Steps through episodes with a policy that plans."""

    plan: Callable[[PlanRequest], PlanReply]
    act: Callable[[SegmentRequest], SegmentReply]
    loop: LoopOptions
    action: ActionSpec = field(default_factory=ActionSpec)
    space: WaypointSpace | None = None  # of all plans' waypoints, for `LoopOptions.replan_on`

    @property
    def _still(self) -> FloatArray:
        return self.action.stand_still().reshape(1, -1)

    def step(self, trial: Trial, seen: Observation, state: WalkState) -> WalkStep:
        """Return the actions up to the next waypoint, of a new plan if the one in hand is used up."""
        if self._strays(seen, state):
            state = replace(state, following=len(state.durations))
        state, ended = self._to_next(state)
        if ended:
            return self._end(state)
        if _goes_on(state):
            return self._segment(trial, seen, state)
        return self._new_plan(trial, seen, state)

    def _strays(self, seen: Observation, state: WalkState) -> bool:
        """Return whether the last segment ended so far from its waypoint that its plan ends."""
        rule, aimed = self.loop.replan_on, state.following - 1
        if rule is None or self.space is None or not 0 <= aimed < len(state.waypoints):
            return False
        return rule.calls_for_a_plan(track(self.space, state.waypoints[aimed], seen.proprio))

    def _new_plan(self, trial: Trial, seen: Observation, state: WalkState) -> WalkStep:
        reply = self.plan(PlanRequest(trial, state.plans, state.segments, seen))
        plan = reply.plan
        state = replace(
            state,
            plans=state.plans + 1,
            waypoints=np.asarray(plan.waypoints, np.float32),
            durations=np.asarray(plan.durations, np.int64),
            following=0,
            start=plan.start,
        )
        step = self._first_step(trial, seen, state, reply.first)
        return replace(step, planned=True, timing=reply.timing)

    def _first_step(self, trial: Trial, seen: Observation, state: WalkState, first: Segment | None) -> WalkStep:
        """Return the step that a plan begins with: one that stands still if it executes nothing."""
        empty = not len(state.waypoints)
        state, ended = self._to_next(state)
        if empty or ended:
            return self._end(state)
        if not _goes_on(state):
            return WalkStep(self._still, state)
        return self._segment(trial, seen, state) if first is None else self._executed(state, first.actions)

    def _segment(self, trial: Trial, seen: Observation, state: WalkState) -> WalkStep:
        waypoint, steps = state.waypoints[state.following], _steps(state)
        request = SegmentRequest(trial, state.plans - 1, state.segments, seen, state.start, waypoint, steps)
        reply = self.act(request)
        return replace(self._executed(state, reply.segment.actions), timing=reply.timing)

    def _executed(self, state: WalkState, actions: FloatArray) -> WalkStep:
        """Return the step that follows the segment to the next waypoint."""
        waypoint, steps = state.waypoints[state.following], _steps(state)
        after = replace(
            state,
            segments=state.segments + 1,
            empty_plans=0,
            following=state.following + 1,
            start=None if self.loop.starts_from_actual else waypoint,
        )
        return WalkStep(actions[:steps], after)

    def _end(self, state: WalkState) -> WalkStep:
        return WalkStep(self._still, state, done=True)

    def _to_next(self, state: WalkState) -> tuple[WalkState, bool]:
        """Return the state with the next waypoint that is followed, or a used-up plan; and if the episode ends."""
        for index in range(state.following, len(state.durations)):
            duration = int(state.durations[index])
            if 0 < self.loop.max_segments_per_replan <= index:
                break
            if duration == 0:
                return self._at_zero(state, index)
            if duration > 0:
                return replace(state, following=index), False
        return replace(state, following=len(state.durations)), False

    def _at_zero(self, state: WalkState, index: int) -> tuple[WalkState, bool]:
        """Return a used-up plan, and if its zero duration ends the episode, too."""
        state = replace(state, following=len(state.durations))
        if not self.loop.stop_on_d0:
            return state, False
        state = replace(state, empty_plans=state.empty_plans + (index == 0))
        return state, index > 0 or state.empty_plans > 1


def _goes_on(state: WalkState) -> bool:
    return state.following < len(state.durations)


def _steps(state: WalkState) -> int:
    return min(int(state.durations[state.following]), MAX_SEGMENT_STEPS)


def space_of(policy: object) -> WaypointSpace | None:
    """Return the space of all waypoints of a policy; None if it does not say."""
    space: WaypointSpace | None = getattr(policy, "space", None)
    return space
