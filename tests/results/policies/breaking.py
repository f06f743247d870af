"""The scripted policy, one trial a failure; the env processes of the trials that BREAKING names break at its reply."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.results.policies.handicapped import _open
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.scripted import policy as scripted
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest, Trial

FAILS = (2, 0)  # task, trial


def spec_of(config: Config) -> PolicySpec:
    return scripted.spec_of(config)


def build(config: Config) -> BreakingPolicy:
    return BreakingPolicy()


@dataclass(frozen=True)
class Harm:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (int, ("no number",))


class BreakingPolicy(scripted.ScriptedPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        return [self._changed(request, reply) for request, reply in zip(requests, super().plan(requests), strict=True)]

    def _changed(self, request: PlanRequest, reply: PlanReply) -> PlanReply:
        if _name(request.trial) in os.environ.get("BREAKING", "").split():
            return replace(reply, first=Harm())  # type: ignore[arg-type]
        if _fails(request.trial) and reply.first is not None:
            return replace(reply, first=_open(reply.first))
        return reply

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        replies = super().act(requests)
        return [
            replace(reply, segment=_open(reply.segment)) if _fails(request.trial) else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def _name(trial: Trial) -> str:
    return f"{trial.task.task_id}:{trial.init_state}"


def _fails(trial: Trial) -> bool:
    return (trial.task.task_id, trial.init_state) == FAILS
