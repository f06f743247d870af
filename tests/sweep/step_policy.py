"""The scripted policy at a training step: its checkpoint is a file with the share of trials that it has learned."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.scripted import policy as scripted
from wpray.types import PlanReply, PlanRequest, Segment, SegmentReply, SegmentRequest, Trial

PAUSE_S = float(os.environ.get("WPRAY_TEST_PAUSE", "0"))  # a batch, so that there is time to disturb the run
AHEAD = dict(pair.split(":") for pair in os.environ.get("WPRAY_TEST_AHEAD", "").split(",") if pair)
LOADS = os.environ.get("WPRAY_TEST_LOADS")  # file that gets a line for each load


def spec_of(config: Config) -> PolicySpec:
    return scripted.spec_of(config)


def build(config: Config) -> StepPolicy:
    path = Path(str(config.vlm_checkpoint)) / "skill"
    if LOADS:
        with Path(LOADS).open("a") as file:
            file.write(f"{path.parts[-3]}\n")
    text = path.read_text()
    if text == "broken":
        raise BadInputError(f"vlm_checkpoint: {path} is broken; copy it again")
    return StepPolicy(float(text), AHEAD.get(path.parts[-3]))


def has_learned(trial: Trial, skill: float) -> bool:
    """Decided by the trial and the skill alone; more skill loses no trial."""
    return bool(np.random.default_rng([3, trial.task.task_id, trial.init_state]).random() < skill)


class StepPolicy(scripted.ScriptedPolicy):
    def __init__(self, skill: float, follower: str | None) -> None:
        super().__init__()
        self._skill, self._follower = skill, follower

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        time.sleep(PAUSE_S)
        if any(request.trial.init_state == 3 for request in requests):
            self._wait_for_follower()
        replies = super().plan(requests)
        return [
            reply
            if has_learned(request.trial, self._skill) or not reply.first
            else replace(reply, first=_open(reply.first))
            for request, reply in zip(requests, replies, strict=True)
        ]

    def _wait_for_follower(self) -> None:
        """Answer no more until another checkpoint has begun to load."""
        deadline = time.monotonic() + 90
        while self._follower is not None and self._follower not in Path(str(LOADS)).read_text().split():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._follower} was not loaded meanwhile")
            time.sleep(0.05)

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        time.sleep(PAUSE_S)
        replies = super().act(requests)
        return [
            reply if has_learned(request.trial, self._skill) else replace(reply, segment=_open(reply.segment))
            for request, reply in zip(requests, replies, strict=True)
        ]


def _open(segment: Segment) -> Segment:
    actions = segment.actions.copy()
    actions[:, 6] = -1
    return Segment(actions)


def write_checkpoints(folder: Path, skills: dict[int, float | str]) -> None:
    """folder/step_N/vlm, each with its skill."""
    for step, skill in skills.items():
        place = folder / f"step_{step}" / "vlm"
        place.mkdir(parents=True)
        (place / "skill").write_text(str(skill))
