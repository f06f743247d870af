"""A policy with a LoRA adapter says how it is computed, and no answer depends on its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.vla import joint_config, observation, reply_bytes, trial
from tests.tiny_weights import block_size, write_adapted
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.types import PlanRequest


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    write_adapted(folder, block_size(), "bfloat16")
    return folder


def _build(folder: Path, **changes: Any) -> WaypointVlaPolicy:
    lora = {"lora_enabled": True, "pretrained_weight_path": str(folder / "base"), "lora_rank": 4, "lora_alpha": 6.0}
    settings = {"batching": {"deterministic": True}, "precision": "bfloat16", **lora, **changes}
    return waypoint_vla.build(joint_config(folder / "run", **settings))


def test_both_modes_answer_unlike_each_other_and_say_which_they_are(adapted: Path) -> None:
    rng = np.random.default_rng(0)
    requests = [PlanRequest(trial(index), index, index, observation(rng)) for index in range(4)]
    answers = {}
    for mode, merge in (("active", False), ("merged", True)):
        policy = _build(adapted, runtime_merge=merge)
        facts = policy.sources.facts
        assert facts["models"]["adapter"] == mode
        assert facts["joint_checkpoint"]["adapter"]["mode"] == mode
        assert facts["joint_checkpoint"]["adapter"]["scale"] == 1.5
        names = {file.name for file in policy.files}
        assert {"lora.safetensors", "model.safetensors"} <= names  # their digests are recorded
        answers[mode] = [reply_bytes(reply) for reply in policy.plan(requests)]
        for start in range(0, 4, 3):
            part = [reply_bytes(reply) for reply in policy.plan(requests[start : start + 3])]
            assert part == answers[mode][start : start + 3]
    assert answers["active"] != answers["merged"]
