"""Which models the checkpoints are: decided from every witness, refused where they contradict one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_weights import block_size, joint_size, save, state_dict, write_checkpoints, write_joint
from wpray.errors import BadInputError
from wpray.models.config import action_expert_manifest
from wpray.models.layouts import ModelSettings, choose_file, open_models

GIVEN = ModelSettings(
    pair=None, joint=None, token_layout=None, prefer="model", proprio_dim=6, statistics=Path("statistics.json")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{vlm,ae,a,b}."""
    made = tmp_path_factory.mktemp("layouts")
    write_checkpoints(made)
    write_joint(made / "a", "a")
    write_joint(made / "b", "b")
    return made


def _pair(folder: Path) -> ModelSettings:
    return replace(GIVEN, pair=(str(folder / "vlm"), str(folder / "ae")), proprio_dim=8)


def _joint(folder: Path, variant: str) -> ModelSettings:
    return replace(GIVEN, joint=str(folder / variant))


def test_each_layout_is_recognised_from_its_witnesses(folder: Path) -> None:
    """The files of `ae` and `a` have the same header."""
    pair, joint = _pair(folder), _joint(folder, "a")
    for given, expected in (
        (pair, ("bins256", False, False)),
        (replace(pair, token_layout="bins256"), ("bins256", False, False)),
        (replace(pair, token_layout="bins300", proprio_dim=6), ("bins300", False, False)),
        (joint, ("bins300", True, False)),
        (replace(joint, proprio_dim=8), ("bins256", True, False)),
        (replace(joint, proprio_dim=8, token_layout="bins256"), ("bins256", True, False)),
        (_joint(folder, "b"), ("bins300", True, True)),
        (replace(_joint(folder, "b"), token_layout="bins300"), ("bins300", True, True)),
    ):
        found = open_models(given)
        assert (found.tokens.name, found.joint, found.expert_config.duration_embed) == expected
        assert len(found.files) == 2 - found.joint


def test_a_contradiction_names_every_witness(folder: Path) -> None:
    pair, joint, tokens = _pair(folder), _joint(folder, "a"), _joint(folder, "b")
    for given, witnesses in (
        (replace(pair, proprio_dim=6), ["6 proprio dimensions (bins300)", "a pair of files (bins256)"]),
        (replace(pair, token_layout="bins300"), ["8 proprio dimensions (bins256)", "token_layout is set (bins300)"]),
        (replace(joint, token_layout="bins256"), ["6 proprio", "token_layout is set (bins256)", "joint_checkpoint is"]),
        (replace(tokens, proprio_dim=8), ["8 proprio dimensions (bins256)", "holds duration_embed (bins300)"]),
        (
            replace(tokens, proprio_dim=8, token_layout="bins256"),
            ["8 proprio", "token_layout is set (bins256)", "duration_embed (bins300)", "joint_checkpoint is"],
        ),
    ):
        with pytest.raises(BadInputError) as raised:
            open_models(given)
        for witness in ["statistics.json describes", *witnesses]:
            assert witness in str(raised.value)
        assert "\n" not in str(raised.value)


def test_what_is_not_of_the_recognised_layout_is_refused_by_its_tensors(folder: Path, tmp_path: Path) -> None:
    """The reference loads each of these, and computes with memory that nobody has written."""
    whole = state_dict(action_expert_manifest(joint_size("b"), "float32"), 0)
    norm = "paligemma_with_expert.paligemma.model.language_model.norm.weight"
    for index, (state, said) in enumerate(
        (
            ({**whole, "time_mlp_in.weight": torch.zeros(32, 64)}, "shape: time_mlp_in.weight (32, 64) instead of"),
            (
                {name: own for name, own in whole.items() if name != "duration_embed.weight"},
                "shape: time_mlp_in.weight",
            ),
            ({name: own for name, own in whole.items() if name != norm}, f"missing: {norm}"),
            ({**whole, "goal_encoder.out.bias": torch.zeros(4)}, "unknown: goal_encoder.out.bias"),
            (load_file(folder / "vlm_nested" / "model.safetensors"), "it is not of this model"),
        )
    ):
        save(state, tmp_path / str(index))
        with pytest.raises(BadInputError) as raised:
            open_models(_joint(tmp_path, str(index)))
        assert said in str(raised.value)


def test_a_block_planner_is_recognised_and_only_where_it_belongs(folder: Path, tmp_path: Path) -> None:
    for name, blocks in (("whole", 7), ("plain", None), ("short", 5)):
        write_joint(tmp_path / name, block_size(blocks))
    for name in ("whole", "plain"):
        found = open_models(_joint(tmp_path, name))
        assert found.facts == {"layout": "joint", "planner": "block_ar", "token_layout": "bins300", "duration": "token"}
    with pytest.raises(BadInputError, match=r"num_waypoints: 7, but .*short/model\.safetensors plans 5"):
        open_models(_joint(tmp_path, "short"))
    open_models(replace(_joint(tmp_path, "short"), num_waypoints=5))
    with pytest.raises(BadInputError, match=r"8 proprio dimensions \(bins256\).*holds block_planner \(bins300\)"):
        open_models(replace(_joint(tmp_path, "whole"), proprio_dim=8))
    pair = replace(_pair(folder), token_layout="bins300", proprio_dim=6)
    with pytest.raises(BadInputError, match=r"ae_checkpoint.* holds a block planner, which only a joint model has"):
        open_models(replace(pair, pair=(str(folder / "vlm"), str(tmp_path / "whole"))))
    with pytest.raises(BadInputError, match=r"vlm_checkpoint.* unknown: block_planner\.block_embed"):
        open_models(replace(pair, pair=(str(tmp_path / "whole"), str(folder / "ae"))))
    whole = state_dict(action_expert_manifest(block_size(), "float32"), 0)
    for index, (state, said) in enumerate(
        (
            ({**whole, "block_planner.query_resid": torch.zeros(19, 64)}, "shape: block_planner.slot_embed.weight"),
            (
                {
                    **whole,
                    **{f"block_planner.{name}": torch.zeros(19, 64) for name in ("query_resid", "slot_embed.weight")},
                },
                "a block planner of 19 tokens a waypoint",
            ),
            ({**whole, "block_planner.head.weight": torch.zeros(3)}, "unknown: block_planner.head.weight"),
            (_without(whole, "block_planner.slot_embed.weight"), "missing: block_planner.slot_embed.weight"),
            (_without(whole, "block_planner.query_resid"), "lacks block_planner.*query_resid"),
            (_without(whole, "duration_embed.weight"), "missing: duration_embed.weight"),
        )
    ):
        save(state, tmp_path / str(index))
        with pytest.raises(BadInputError) as raised:
            open_models(_joint(tmp_path, str(index)))
        assert said in str(raised.value)


def _without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {other: tensor for other, tensor in state.items() if other != name}


def test_a_vlm_out_of_a_newer_models_file_says_which_tokens_it_writes(folder: Path) -> None:
    given = replace(_pair(folder), pair=(str(folder / "b"), str(folder / "ae")))
    with pytest.raises(BadInputError, match=r"b/model\.safetensors holds duration_embed \(bins300\)"):
        open_models(given)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"global_step": 5000, "timestamp": 0.0}, None),
        ({"planner_mode": "block_ar", "planner_block0_cond": "none", "planner_num_waypoints": 7}, None),
        ({"planner_mode": "token_ar"}, "planner_mode token_ar (not block_ar)"),
        ({"planner_block0_cond": "current_state"}, "planner_block0_cond current_state (not none)"),
        ({"planner_use_block_embed": False, "planner_block_width": 19}, "planner_block_width 19 (not 10)"),
        ({"goal_condition_mode": "adarms_residual_v1"}, "goal_condition_mode adarms_residual_v1 (not none)"),
        ([1, 2], "it holds list, not a dict"),
        (Path("x"), "not a checkpoint's metadata"),  # code, which is not run
    ],
)
def test_metadata_beside_a_checkpoint_must_not_say_otherwise(tmp_path: Path, metadata: Any, said: str | None) -> None:
    write_joint(tmp_path / "block", block_size())
    torch.save(metadata, tmp_path / "block" / "metadata.pt")
    if said is None:
        open_models(_joint(tmp_path, "block"))
        return
    with pytest.raises(BadInputError) as raised:
        open_models(_joint(tmp_path, "block"))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_metadata_of_a_block_planner_beside_weights_of_none_are_refused(folder: Path, tmp_path: Path) -> None:
    write_joint(tmp_path / "b", "b")
    torch.save({"planner_mode": "block_ar"}, tmp_path / "b" / "metadata.pt")
    with pytest.raises(BadInputError, match=r"planner_mode block_ar \(not token_ar\)"):
        open_models(_joint(tmp_path, "b"))


def test_of_two_files_the_setting_chooses_and_the_other_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"joint_checkpoint: .*no checkpoint here \(found: an empty folder\)"):
        choose_file("joint_checkpoint", str(tmp_path), "model")
    plain, merged = tmp_path / "model.safetensors", tmp_path / "model_merged.safetensors"
    merged.touch()
    only = choose_file("joint_checkpoint", str(tmp_path), "model")
    assert (only.path, only.reason, only.passed_over) == (merged, "the only one", None)
    plain.touch()
    for prefer, chosen, other in (("model", plain, merged), ("model_merged", merged, plain)):
        found = choose_file("joint_checkpoint", str(tmp_path), prefer)  # type: ignore[arg-type]
        assert (found.path, found.reason, found.passed_over) == (chosen, f"checkpoint_file: {prefer}", other)
    named = choose_file("joint_checkpoint", str(merged), "model")
    assert (named.path, named.passed_over) == (merged, None)
