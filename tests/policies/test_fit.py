"""A policy's specification is compared with the benchmark's before anything starts."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.fit import check_fits, check_options
from wpray.types import ActionSpec, ImageSpec, ObservationSpec

SHOWN = ObservationSpec(privileged=True)
SPEC = PolicySpec("mine", images=True, privileged=False, num_gpus=0, max_batch_size=1)


def _check(shown: ObservationSpec = SHOWN, action: ActionSpec | None = None, **wanted: Any) -> None:
    check_fits(dataclasses.replace(SPEC, **wanted), "fake", shown, action or ActionSpec())


def test_what_fits_passes() -> None:
    _check()
    _check(cameras={"wrist": ImageSpec(96, 128, rotated=False, resize="pad", crop_scale=0.9)})
    _check(images=False, cameras={"none": ImageSpec(0, 0)})  # it sees none of them
    _check(proprio=("gripper_qpos", "eef_pos"), privileged=True)


@pytest.mark.parametrize(
    ("check", "hint"),
    [
        (lambda: _check(cameras={"left": ImageSpec()}), "it wants the camera left, and the suite has base, wrist"),
        (lambda: _check(cameras={"base": ImageSpec(0, 224)}), "it wants the camera base as ImageSpec(height=0"),
        (lambda: _check(cameras={"base": ImageSpec(crop_scale=1.2)}), "which is no picture"),
        (
            lambda: _check(proprio=("joint_pos",)),
            "it wants joint_pos of the robot, and the suite has eef_pos",
        ),
        (lambda: _check(ObservationSpec(), privileged=True), "it wants the simulator's state"),
        (lambda: _check(action=ActionSpec(gripper="positive_opens")), "gripper positive_closes, and the suite's have"),
        (lambda: _check(action=ActionSpec(dim=8)), "its actions have dim 7, and the suite's have dim 8"),
    ],
)
def test_a_mismatch_is_one_line_that_names_both(check: Callable[[], None], hint: str) -> None:
    with pytest.raises(BadInputError, match="policy mine does not fit task_suite fake: ") as caught:
        check()
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_plans_are_refused_for_a_policy_without() -> None:
    chunks = dataclasses.replace(SPEC, kind="chunk")
    check_options(SPEC, Config(stop_on_d0=True))
    check_options(chunks, Config())
    for setting in ({"stop_on_d0": True}, {"max_segments_per_replan": 2}, {"segment_start_from": "actual"}):
        with pytest.raises(BadInputError, match=f"{next(iter(setting))}: is for policies that plan waypoints"):
            check_options(chunks, Config.model_validate(setting))


def test_a_specification_travels_to_another_process() -> None:
    spec = dataclasses.replace(SPEC, cameras=MappingProxyType({"base": ImageSpec()}))
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert dataclasses.asdict(SPEC)["cameras"]["wrist"]["resize"] == "bilinear"
