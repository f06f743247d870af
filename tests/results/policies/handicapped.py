"""The scripted policy with a handicap: in a seeded share of the trials its gripper never closes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.scripted import policy as scripted
from wpray.types import PlanReply, PlanRequest, Segment, SegmentReply, SegmentRequest, Trial

SHARE = float(os.environ.get("HANDICAP", "0.1"))  # of the trials


def spec_of(config: Config) -> PolicySpec:
    return scripted.spec_of(config)


def build(config: Config) -> HandicappedPolicy:
    return HandicappedPolicy()


def is_handicapped(trial: Trial) -> bool:
    """Decided by the trial alone."""
    return bool(np.random.default_rng([17, trial.task.task_id, trial.init_state]).random() < SHARE)


class HandicappedPolicy(scripted.ScriptedPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        replies = super().plan(requests)
        return [
            replace(reply, first=_open(reply.first)) if is_handicapped(request.trial) and reply.first else reply
            for request, reply in zip(requests, replies, strict=True)
        ]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        replies = super().act(requests)
        return [
            replace(reply, segment=_open(reply.segment)) if is_handicapped(request.trial) else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def _open(segment: Segment) -> Segment:
    actions = segment.actions.copy()
    actions[:, 6] = -1
    return Segment(actions)
