"""A policy that answers as late as a GPU would: it sleeps for what calls take, so that many fit on one machine.

Slower than the GPU by a factor, so that a few cores of environments can feed several of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from wpray.bench.simulated_gpu import Costs, interpolated
from wpray.config import Config
from wpray.policy import noop
from wpray.policy.base import PolicySpec
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

SLOWER = 2.0


def spec_of(config: Config) -> PolicySpec:
    """Camera images, as a learned policy needs them."""
    return dataclasses.replace(noop.spec_of(config), name="sleeping", images=True)


def build(config: Config) -> SleepingPolicy:
    """Stays where it is, late."""
    return SleepingPolicy(spec_of(config), config.num_waypoints)


class SleepingPolicy(noop.NoopPolicy):
    """Replies of NoopPolicy after the time of a call."""

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """As NoopPolicy."""
        time.sleep(SLOWER * interpolated(Costs().plan_s, len(requests)))
        return super().plan(requests)

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """As NoopPolicy."""
        time.sleep(SLOWER * interpolated(Costs().segment_s, len(requests)))
        return super().act(requests)
