"""Runs out of memory on larger batches now and then, or falls sick for the rest of a process's life.

How often is up to files in the folder SICK_FOLDER: a process that finds `sick-N` there takes it and is sick from then
on; every exception adds a line to `raised`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tests.faults.policies import slow
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

Request = TypeVar("Request", PlanRequest, SegmentRequest)


def spec_of(config: Config) -> PolicySpec:
    return slow.spec_of(config)


def build(config: Config) -> SickPolicy:
    return SickPolicy(spec_of(config), Path(os.environ["SICK_FOLDER"]))


class SickPolicy(slow.SlowPolicy):
    def __init__(self, spec: PolicySpec, folder: Path) -> None:
        super().__init__(spec)
        self._folder, self._rng, self._sick = folder, random.Random(os.getpid()), ""

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        self._maybe_raise(requests)
        return super().plan(requests)

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        self._maybe_raise(requests)
        return super().act(requests)

    def _maybe_raise(self, requests: Sequence[PlanRequest] | Sequence[SegmentRequest]) -> None:
        for path in [] if self._sick else sorted(self._folder.glob("sick-*"))[:1]:
            path.unlink()
            self._sick = path.name.replace("-", "")
        if self._sick:
            self._raise("CUDA error: an illegal memory access was encountered")
        if len(requests) > 1 and self._rng.random() < 0.7:
            self._raise("CUDA out of memory. Tried to allocate 2.00 GiB")

    def _raise(self, message: str) -> None:
        with (self._folder / "raised").open("a") as file:
            file.write(message + "\n")
        # Each sickness of its own kind: the same one on one trial in two lives would be a reason to stop the run.
        raise type(f"RuntimeError{self._sick}", (RuntimeError,), {})(message)
