"""Some trials' replies do harm where they are unpickled, in the env actor, or where they are made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.policies import slow
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.types import PlanReply, PlanRequest

KILLS_ENV, FREEZES_ENV, KILLS_POLICY, RAISES = 1, 2, 3, 4
BREAKS_ENV = 5  # and above: every trial


def spec_of(config: Config) -> PolicySpec:
    return slow.spec_of(config)


def build(config: Config) -> PoisonPolicy:
    return PoisonPolicy(spec_of(config))


@dataclass(frozen=True)
class Harm:
    """Calls `function` with `argument` where it is unpickled."""

    function: Callable[[Any], Any]
    argument: Any

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return (self.function, (self.argument,))


class PoisonPolicy(slow.SlowPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        return [self._poisoned(request, reply) for request, reply in zip(requests, super().plan(requests), strict=True)]

    def _poisoned(self, request: PlanRequest, reply: PlanReply) -> PlanReply:
        task = request.trial.task.task_id
        if task >= BREAKS_ENV:
            return PlanReply(reply.plan, Harm(int, "no number"))  # type: ignore[arg-type]
        if request.trial.init_state != 0:
            return reply
        if task == RAISES:
            raise FloatingPointError("not a number in the hidden state")
        if task == KILLS_POLICY:
            os._exit(1)
        if task == KILLS_ENV:
            return PlanReply(reply.plan, Harm(os._exit, 1))  # type: ignore[arg-type]
        if task == FREEZES_ENV:
            return PlanReply(reply.plan, Harm(_freeze, 0))  # type: ignore[arg-type]
        return reply


def _freeze(_: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
