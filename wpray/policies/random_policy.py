"""Policy of random actions from each request's key, the baseline that a trained policy must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpray.config import Config
from wpray.policies.any_robot import spec_for_any_robot
from wpray.policies.base import PolicySpec
from wpray.trials import trial_generator
from wpray.types import (
    MAX_SEGMENT_STEPS,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    WaypointPlan,
    first_executable,
)


def spec_of(config: Config) -> PolicySpec:
    """Return the spec of a policy without needs."""
    return spec_for_any_robot("random", config)


def build(config: Config) -> RandomPolicy:
    """Return the policy for `config`."""
    return RandomPolicy(spec_of(config), config.num_waypoints)


class RandomPolicy:
    """Policy of random durations and actions, which depend only on (seed, suite, task, trial, plan, segment)."""

    def __init__(self, spec: PolicySpec, num_waypoints: int = 7) -> None:
        self.spec = spec
        self._num_waypoints = num_waypoints

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Return random waypoints and durations from 0 to 32."""
        return [self._plan(request) for request in requests]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """Return smooth random actions."""
        return [SegmentReply(self._segment(request)) for request in requests]

    def _plan(self, request: PlanRequest) -> PlanReply:
        rng = trial_generator(request.trial, "plan", request.plan_index)
        start = request.observation.proprio.astype(np.float32)
        waypoints = start + rng.normal(0, 0.1, (self._num_waypoints, len(start))).astype(np.float32)
        durations = rng.integers(1, MAX_SEGMENT_STEPS + 1, self._num_waypoints)
        first = first_executable(durations)
        segment = None if first is None else self._segment(request)
        return PlanReply(WaypointPlan(start, waypoints, durations), segment)

    def _segment(self, request: PlanRequest | SegmentRequest) -> Segment:
        rng, action = trial_generator(request.trial, "segment", request.segment_index), self.spec.action
        drift = np.cumsum(rng.normal(0, 0.15, (MAX_SEGMENT_STEPS, action.dim)), axis=0)
        return Segment(action.scaled(np.clip(rng.uniform(-0.5, 0.5, action.dim) + drift, -1, 1)))
