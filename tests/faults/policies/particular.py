"""Refuses some trials' requests, as a prompt that is too long is refused: while it prepares them, or answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tests.faults.policies import slow
from wpray.config import Config
from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.types import PlanReply, PlanRequest, SegmentRequest

Request = TypeVar("Request", PlanRequest, SegmentRequest)
# Task ids; trial 0 of each is refused.
NOT_PREPARED, NOT_ANSWERED = 1, 2


def spec_of(config: Config) -> PolicySpec:
    return slow.spec_of(config)


def build(config: Config) -> ParticularPolicy:
    return ParticularPolicy(spec_of(config))


class ParticularPolicy(slow.SlowPolicy):
    def prepare(self, request: Request) -> Request:
        _refuse(request, NOT_PREPARED)
        return request

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        for request in requests:
            _refuse(request, NOT_ANSWERED)
        return super().plan(requests)


def _refuse(request: PlanRequest | SegmentRequest, task_id: int) -> None:
    if (request.trial.task.task_id, request.trial.init_state) == (task_id, 0):
        raise InvalidRequestError("the prompt has 65 tokens")
