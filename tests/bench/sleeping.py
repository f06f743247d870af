"""Policy that sleeps as long as a GPU would compute, so that many replicas fit on one machine.

It is slower than the GPU by a factor, so that environments on a few cores can feed several replicas.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from tests.bench.simulated_gpu import Costs, interpolated
from wpray.config import Config
from wpray.policies import noop
from wpray.policies.base import PolicySpec
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

SLOWER = 2.0


def spec_of(config: Config) -> PolicySpec:
    """Return a spec that asks for camera images, as a learned policy's does."""
    return dataclasses.replace(noop.spec_of(config), name="sleeping", images=True)


def build(config: Config) -> SleepingPolicy:
    """Return a policy that does not move, and replies late."""
    return SleepingPolicy(spec_of(config), config.num_waypoints)


class SleepingPolicy(noop.NoopPolicy):
    """NoopPolicy whose replies take as long as a GPU's."""

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """As NoopPolicy."""
        time.sleep(SLOWER * interpolated(Costs().plan_s, len(requests)))
        return super().plan(requests)

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """As NoopPolicy."""
        time.sleep(SLOWER * interpolated(Costs().segment_s, len(requests)))
        return super().act(requests)
