"""A policy that takes its time, and answers nothing while the file named by WPRAY_TEST_GATE exists."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.policies import slow
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.types import PlanReply, PlanRequest


def spec_of(config: Config) -> PolicySpec:
    return slow.spec_of(config)


def build(config: Config) -> GatedPolicy:
    return GatedPolicy(spec_of(config))


class GatedPolicy(slow.SlowPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        while Path(os.environ["WPRAY_TEST_GATE"]).exists():
            time.sleep(0.05)
        return super().plan(requests)
