"""Policy of random actions from each request's key, the baseline that a trained policy must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.trials import trial_generator
from wpray.types import (
    ACTION_DIM,
    MAX_SEGMENT_STEPS,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Trial,
    WaypointPlan,
    first_executable,
)


def spec_of(config: Config) -> PolicySpec:
    """Return the spec of a policy without needs."""
    return PolicySpec("random", False, False, num_gpus=0, max_batch_size=config.batching.max_batch_size)


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
        return [SegmentReply(_random_segment(request.trial, request.segment_index)) for request in requests]

    def _plan(self, request: PlanRequest) -> PlanReply:
        rng = trial_generator(request.trial, "plan", request.plan_index)
        start = request.observation.proprio.astype(np.float32)
        waypoints = start + rng.normal(0, 0.1, (self._num_waypoints, len(start))).astype(np.float32)
        durations = rng.integers(1, MAX_SEGMENT_STEPS + 1, self._num_waypoints)
        first = first_executable(durations)
        segment = None if first is None else _random_segment(request.trial, request.segment_index)
        return PlanReply(WaypointPlan(start, waypoints, durations), segment)


def _random_segment(trial: Trial, segment_index: int) -> Segment:
    rng = trial_generator(trial, "segment", segment_index)
    drift = np.cumsum(rng.normal(0, 0.15, (MAX_SEGMENT_STEPS, ACTION_DIM)), axis=0)
    return Segment(np.clip(rng.uniform(-0.5, 0.5, ACTION_DIM) + drift, -1, 1))
