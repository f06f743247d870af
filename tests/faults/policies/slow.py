"""Stays where it is and takes its time: runs last long enough to be disturbed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.random_policy import RandomPolicy
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

PAUSE_S = 0.03


def spec_of(config: Config) -> PolicySpec:
    return PolicySpec("slow", images=True, privileged=False, num_gpus=0, max_batch_size=8)


def build(config: Config) -> SlowPolicy:
    return SlowPolicy(spec_of(config))


class SlowPolicy(RandomPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        time.sleep(PAUSE_S)
        return super().plan(requests)

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        time.sleep(PAUSE_S)
        return super().act(requests)
