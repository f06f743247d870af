"""The doctor recognises each layout of the checkpoints, and names what contradicts in each mix."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.policies.vla import DATA, JOINT_DATA, TINY
from tests.tiny_weights import block_size, joint_size, save, write_adapted, write_checkpoints, write_joint
from wpray.checks import CheckResult
from wpray.cli.configuration import validate
from wpray.config import Config
from wpray.doctor.checks import carry_out
from wpray.errors import BadInputError
from wpray.policies.waypoint_vla import doctor

WIDTHS = {8: DATA / "dataset_statistics.json", 6: JOINT_DATA / "dataset_statistics.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{vlm,ae,a,b,block}; folder/lora/{base,run}; folder/both with both file names."""
    made = tmp_path_factory.mktemp("doctor")
    write_checkpoints(made)
    for name in ("a", "b"):
        write_joint(made / name, name)  # type: ignore[arg-type]
    write_joint(made / "block", block_size())
    write_adapted(made / "lora", joint_size("b"))
    write_joint(made / "both", "b")
    write_joint(made / "both", "b", seed=5, file="model_merged.safetensors")
    return made


def config(width: int, **settings: Any) -> Config:
    return validate({**TINY, "precision": "float32", "dataset_statistics_path": str(WIDTHS[width]), **settings})


def joint(folder: Path, name: str, width: int = 6, **settings: Any) -> Config:
    return config(width, joint_checkpoint=str(folder / name), **settings)


def pair(folder: Path, vlm: str = "vlm", ae: str = "ae", width: int = 8, **settings: Any) -> Config:
    return config(width, vlm_checkpoint=str(folder / vlm), ae_checkpoint=str(folder / ae), **settings)


def adapted(folder: Path, **settings: Any) -> Config:
    given = {"lora_enabled": True, "pretrained_weight_path": str(folder / "lora" / "base"), "lora_alpha": 4.0}
    return joint(folder, "lora/run", **{**given, "lora_rank": 4, **settings})


def check(config: Config) -> list[CheckResult]:
    return carry_out("models", doctor.check_models, config)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (pair, ["VLM", "action expert"]),
        (lambda folder: pair(folder, width=6, token_layout="bins300"), ["VLM", "action expert"]),
        (lambda folder: joint(folder, "a"), ["joint model (bins300)"]),
        (lambda folder: joint(folder, "a", 8), ["joint model (bins256)"]),
        (lambda folder: joint(folder, "b"), ["joint model (bins300)"]),
        (lambda folder: joint(folder, "block"), ["joint model (bins300, block planner)"]),
        (lambda folder: joint(folder, "block", planner_mode="block_ar"), ["joint model (bins300, block planner)"]),
        (adapted, ["joint model (bins300, active LoRA adapter)"]),
        (lambda folder: adapted(folder, runtime_merge=True), ["joint model (bins300, merged LoRA adapter)"]),
    ],
)
def test_each_layout_is_recognised(folder: Path, make: Callable[[Path], Config], names: list[str]) -> None:
    found = check(make(folder))
    assert [(result.name, result.status) for result in found] == [(name, "pass") for name in names]


def test_a_file_that_is_passed_over_is_a_warning(folder: Path) -> None:
    for prefer in ("model", "model_merged"):
        first, second = check(joint(folder, "both", checkpoint_file=prefer))
        assert f"{prefer}.safetensors" in first.text
        assert (second.status, f"is read (checkpoint_file: {prefer})" in second.text) == ("warn", True)


def test_an_adapter_that_is_enabled_but_not_there_is_a_warning(folder: Path) -> None:
    merged = joint(folder, "b", lora_enabled=True, pretrained_weight_path=str(folder / "lora/base"), lora_alpha=4.0)
    first, second = check(merged)
    assert (first.status, second.status) == ("pass", "warn")
    assert "holds merged weights" in second.text


@pytest.mark.parametrize(
    ("make", "witnesses"),
    [
        (lambda f: pair(f, width=6), ["6 proprio dimensions (bins300)", "a pair of files (bins256)"]),
        (
            lambda f: pair(f, token_layout="bins300"),
            ["8 proprio dimensions (bins256)", "token_layout is set (bins300)"],
        ),
        (lambda f: pair(f, "ae", "vlm"), ["ae_checkpoint", "swapped"]),
        (lambda f: pair(f, "b"), ["holds duration_embed (bins300)", "8 proprio dimensions (bins256)"]),
        (lambda f: pair(f, ae="b"), ["holds duration_embed (bins300)", "8 proprio dimensions (bins256)"]),
        (lambda f: pair(f, ae="block"), ["ae_checkpoint", "block planner, which only a joint model has"]),
        (lambda f: pair(f, "block"), ["vlm_checkpoint", "unknown: block_planner."]),
        (lambda f: joint(f, "vlm"), ["joint_checkpoint", "it is not of this model"]),
        (lambda f: joint(f, "vlm_nested"), ["joint_checkpoint", "it is not of this model"]),
        (lambda f: joint(f, "a", token_layout="bins256"), ["6 proprio", "token_layout is set (bins256)", "joint_ch"]),
        (lambda f: joint(f, "b", 8), ["8 proprio dimensions (bins256)", "holds duration_embed (bins300)"]),
        (lambda f: joint(f, "block", 8), ["8 proprio dimensions (bins256)", "holds block_planner (bins300)"]),
        (lambda f: joint(f, "block", num_waypoints=5), ["num_waypoints: 5", "plans 7"]),
        (lambda f: joint(f, "block", planner_mode="token_ar"), ["planner_mode is token_ar", "block_planner tensors"]),
        (lambda f: joint(f, "b", planner_mode="block_ar"), ["planner_mode is block_ar", "no block_planner tensors"]),
        (
            lambda f: joint(f, "block", planner_use_block_embed=False),
            ["planner_use_block_embed is false", "a block_em"],
        ),
        (lambda f: joint(f, "lora/run"), ["lora.safetensors", "set lora_enabled: true"]),
        (lambda f: adapted(f, lora_rank=16), ["lora_rank 16", "instead of (16,"]),
        (lambda f: adapted(f, lora_apply_to="expert_only"), ["lora_apply_to expert_only", "unknown: "]),
        (lambda f: adapted(f, vision_encoder_mode="lora"), ["vision_encoder_mode lora", "missing: "]),
        (lambda f: adapted(f, use_ema=True), ["lora_ema.safetensors", "use_ema"]),
        (
            lambda f: adapted(f, pretrained_weight_path=str(f / "vlm")),
            ["is not of this model", "see that pretrained_weight_path"],
        ),
    ],
)
def test_each_forbidden_mix_fails_naming_its_witnesses(
    folder: Path, make: Callable[[Path], Config], witnesses: list[str]
) -> None:
    (found,) = check(make(folder))
    assert found.status == "fail"
    for witness in witnesses:
        assert witness in found.text, found.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_mlp_in.weight": torch.zeros(32, 64)}, "shape: time_mlp_in.weight"),
        ({"duration_embed.weight": None}, "shape: time_mlp_in.weight"),
        ({"proprio_encoder.bias": None}, "missing: proprio_encoder.bias"),
        ({"goal_encoder.out.bias": torch.zeros(4)}, "unknown: goal_encoder.out.bias"),
    ],
)
def test_a_tensor_more_or_less_fails(folder: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tensors = {**load_file(folder / "b" / "model.safetensors"), **change}
    save({name: own for name, own in tensors.items() if own is not None}, tmp_path / "b")
    (found,) = check(joint(tmp_path, "b"))
    assert (found.status, said in found.text) == ("fail", True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_ema": True}, "use_ema is of a LoRA adapter"),
        ({"runtime_merge": True}, "runtime_merge is of a LoRA adapter"),
        ({"lora_enabled": True, "lora_alpha": 4.0}, "lora_enabled needs pretrained_weight_path"),
        ({"lora_enabled": True, "pretrained_weight_path": "base"}, "lora_enabled needs lora_alpha"),
        ({"train_vision_encoder": True, "vision_encoder_mode": "lora"}, "vision_encoder_mode: full, not lora"),
    ],
)
def test_settings_that_contradict_are_one_line(folder: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        joint(folder, "b", **settings)
    if settings.get("lora_enabled"):
        with pytest.raises(BadInputError, match="lora_enabled needs joint_checkpoint"):
            pair(folder, **settings)


def test_an_old_average_fails_and_forensics_allow_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lora", tmp_path / "lora")
    shutil.copy(tmp_path / "lora/run/lora.safetensors", tmp_path / "lora/run/lora_ema.safetensors")
    recorded = {"global_step": 110, "ema_decay": 0.99, "ema_warmup_steps": 100}
    torch.save(recorded, tmp_path / "lora/run/metadata.pt")
    (found,) = check(adapted(tmp_path, use_ema=True))
    assert (found.status, "90% of the average" in found.text) == ("fail", True)
    statuses = [result.status for result in check(adapted(tmp_path, use_ema=True, allow_stale_ema_forensics=True))]
    assert statuses == ["pass", "warn", "warn"]  # the raw weights beside it, and the average
