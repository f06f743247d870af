"""Policy that does nothing. Its success rate must be 0%; otherwise the protocol counts wrong successes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpray.config import Config
from wpray.policies.any_robot import spec_for_any_robot
from wpray.policies.base import PolicySpec
from wpray.types import (
    MAX_SEGMENT_STEPS,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    WaypointPlan,
)


def spec_of(config: Config) -> PolicySpec:
    """Return the spec of a policy without needs."""
    return spec_for_any_robot("noop", config)


def build(config: Config) -> NoopPolicy:
    """Return the policy for `config`."""
    return NoopPolicy(spec_of(config), config.num_waypoints)


class NoopPolicy:
    """Policy that plans to stay, with `steps` control steps per waypoint, and sends actions that stand still."""

    def __init__(self, spec: PolicySpec, num_waypoints: int = 7, steps: int = 20) -> None:
        self.spec = spec
        self._still = Segment(np.tile(spec.action.stand_still(), (MAX_SEGMENT_STEPS, 1)))
        self._durations = np.full(num_waypoints, steps, dtype=np.int64)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Return waypoints at the current proprio."""
        return [self._stay(request.observation.proprio.astype(np.float32)) for request in requests]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """Return actions that stand still."""
        return [SegmentReply(self._still) for _ in requests]

    def _stay(self, proprio: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> PlanReply:
        waypoints = np.tile(proprio.reshape(1, -1), (len(self._durations), 1))
        return PlanReply(WaypointPlan(proprio, waypoints, self._durations), self._still)
