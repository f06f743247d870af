"""`wpray.testing golden` holds checkpoints of every layout against recorded numbers, and records them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny_weights import block_size, joint_size, save, write_adapted, write_checkpoints, write_joint
from wpray.cli.command import run_command
from wpray.testing.__main__ import main

DATA = Path(__file__).parents[1] / "data"
TWO, JOINT = DATA / "golden" / "golden.npz", DATA / "golden_joint"
SIZES = {"paligemma_variant": "tiny_2b", "action_expert_variant": "tiny_300m"}
STATISTICS = {8: DATA / "rollout" / "dataset_statistics.json", 6: JOINT / "dataset_statistics.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{vlm,ae,a,b,block}: tiny float32 checkpoints; folder/NAME.yaml."""
    made = tmp_path_factory.mktemp("golden")
    write_checkpoints(made)
    for name in ("a", "b"):
        write_joint(made / name, name)  # type: ignore[arg-type]
        write_config(made / f"{name}.yaml", 6, joint_checkpoint=made / name)
    write_joint(made / "block", block_size())
    write_config(made / "block.yaml", 6, joint_checkpoint=made / "block")
    write_config(made / "two.yaml", 8, vlm_checkpoint=made / "vlm", ae_checkpoint=made / "ae")
    return made


def write_config(path: Path, width: int, **checkpoints: Path) -> None:
    names = {name: str(checkpoint) for name, checkpoint in checkpoints.items()}
    precisions = {"precision": "float32", **({"vlm_precision": "float32"} if width == 8 else {})}
    content = {**SIZES, **precisions, **names, "dataset_statistics_path": str(STATISTICS[width])}
    path.write_text(yaml.safe_dump(content))


def golden(folder: Path, name: str, file: Path, *options: str) -> int:
    return run_command(main, ["golden", str(folder / f"{name}.yaml"), str(file), *options])


def changed(path: Path, source: Path, **changes: Any) -> Path:
    """Write a copy of an NPZ file with other arrays; None leaves one out."""
    with np.load(source) as data:
        arrays = {**data, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [("two", TWO, 4), ("a", JOINT / "golden_a.npz", 8), ("b", JOINT / "golden_b.npz", 8)],
)
def test_the_references_numbers_are_met(
    folder: Path, name: str, file: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert golden(folder, name, file) == 0
    lines = capsys.readouterr().out.splitlines()
    passed = {line.split()[1]: line for line in lines if line.startswith("pass")}
    assert len(passed) == count
    assert passed["vlm_tokens_float32"].endswith("exact")
    assert f"(at most {'0.0004' if name == 'two' else '0.0001'})" in passed["ae_actions_float32"]
    assert lines[-1] == f"{count} arrays agree, 0 differ by more than their tolerance"


@pytest.mark.parametrize(("name", "file"), [("two", TWO), ("a", JOINT / "golden_a.npz"), ("b", JOINT / "golden_b.npz")])
def test_bfloat16_is_compared_after_the_recorded_tokens(
    folder: Path, name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precision", "bfloat16", *(["--vlm_precision", "bfloat16"] if name == "two" else [])]
    assert golden(folder, name, file, *options) == 0
    said = capsys.readouterr().out
    assert "vlm_last_hidden_bfloat16" in said
    assert ("vlm_tokens_bfloat16_head32" in said.split("skip")[0]) is (name == "a")


def test_another_models_weights_differ(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_joint(tmp_path / "a", "a", seed=1)
    write_config(tmp_path / "a.yaml", 6, joint_checkpoint=tmp_path / "a")
    for precision in ("float32", "bfloat16"):
        assert golden(tmp_path, "a", JOINT / "golden_a.npz", "--precision", precision) == 1
        failed = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")}
        tokens = "vlm_tokens_float32" if precision == "float32" else "vlm_tokens_bfloat16_head32"
        assert {tokens, f"vlm_last_hidden_{precision}", f"ae_actions_{precision}"} <= failed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("paligemma_with_expert.paligemma.model.language_model.norm.weight", lambda own: own + 0.05),
        ("proprio_encoder.bias", lambda own: own + 0.01),
        ("duration_embed.weight", lambda own: own.flip(0)),
        ("paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias", lambda own: own + 0.01),
    ],
)
def test_one_tensor_that_differs_is_found(
    folder: Path, tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    weights = load_file(folder / "b" / "model.safetensors")
    save({**weights, name: change(weights[name])}, tmp_path / "b")
    write_config(tmp_path / "b.yaml", 6, joint_checkpoint=tmp_path / "b")
    assert golden(tmp_path, "b", JOINT / "golden_b.npz") == 1


@pytest.mark.parametrize("name", ["two", "a", "block"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_recorded_is_met_exactly(
    folder: Path, tmp_path: Path, name: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precision", precision, *(["--vlm_precision", precision] if name == "two" else [])]
    file = tmp_path / "recorded.npz"
    assert golden(folder, name, file, "--record", *options) == 0
    capsys.readouterr()
    assert golden(folder, name, file, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("pass") and line.endswith("exact") for line in lines[:-1])
    with np.load(file, allow_pickle=False) as data:
        facts = json.loads(str(data["recorded"]))
    assert facts["planner"] == ("block_ar" if name == "block" else "token_ar")


def test_a_recorded_file_shows_a_block_planner_that_was_changed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recorded.npz"
    assert golden(folder, "block", file, "--record") == 0
    weights = load_file(folder / "block" / "model.safetensors")
    slots = weights["block_planner.slot_embed.weight"]
    save({**weights, "block_planner.slot_embed.weight": slots.flip(0)}, tmp_path / "block")
    write_config(tmp_path / "block.yaml", 6, joint_checkpoint=tmp_path / "block")
    assert golden(tmp_path, "block", file) == 1


def test_a_recording_shows_an_adapter_of_another_scale(tmp_path: Path) -> None:
    write_adapted(tmp_path, joint_size("b"), "bfloat16")
    write_config(tmp_path / "run.yaml", 6, joint_checkpoint=tmp_path / "run", pretrained_weight_path=tmp_path / "base")
    adapter = ["--lora_enabled", "true", "--lora_rank", "4", "--lora_alpha", "6", "--precision", "bfloat16"]
    file = tmp_path / "recorded.npz"
    assert golden(tmp_path, "run", file, "--record", *adapter) == 0
    with np.load(file) as data:
        assert json.loads(str(data["recorded"]))["adapter"] == "active"
    assert golden(tmp_path, "run", file, *adapter) == 0
    assert golden(tmp_path, "run", file, *adapter, "--lora_alpha", "40") == 1


def test_a_recording_is_not_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recorded.npz"
    file.write_bytes(b"precious")
    assert golden(folder, "a", file, "--record") == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_bytes() == b"precious"


def test_the_header_is_paligemmas_where_a_file_has_none(folder: Path, tmp_path: Path) -> None:
    assert golden(folder, "a", changed(tmp_path / "plain.npz", JOINT / "golden_a.npz", vlm_header=None)) == 0
    other = changed(tmp_path / "other.npz", JOINT / "golden_a.npz", vlm_header=np.array([4022, 5, 6]))
    assert golden(folder, "a", other) == 1


BAD: Mapping[str, tuple[dict[str, Any], str]] = {
    "lacks an input": ({"ae_noise": None}, "lacks the array ae_noise"),
    "lacks a prompt": ({"vlm_prompt_1": None}, "lacks the array vlm_prompt_1"),
    "images of another size": ({"images_base": np.zeros((3, 8, 8, 3), np.uint8)}, "images_base has shape (3, 8, 8, 3)"),
    "images that are floats": ({"images_base": np.zeros((3, 224, 224, 3))}, "images_base is float64, not uint8"),
    "noise of another horizon": ({"ae_noise": np.zeros((3, 50, 32), np.float32)}, "ae_noise has shape (3, 50, 32)"),
    "a longer duration": ({"ae_duration": np.array([1.0, 2.0, 50.0])}, "are not all 0 to 33 steps"),
    "an id out of the vocabulary": ({"vlm_prompt_0": np.array([2, 300_000])}, "outside of 0 to 257151"),
    "an empty prompt": ({"vlm_prompt_0": np.zeros(0, np.int64)}, "is empty"),
    "suffix of the other variant": ({"ae_suffix_float32": np.zeros((3, 5, 32), np.float32)}, "another model's"),
    "plans of the other tokens": ({"vlm_tokens_float32": np.zeros((3, 77), np.int64)}, "has shape (3, 77)"),
    "no waypoints": ({"vlm_tokens_float32": np.full((3, 70), 7)}, "not whole waypoints"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_one_line(
    folder: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, said = BAD[case]
    file = changed(tmp_path / "bad.npz", JOINT / "golden_a.npz", **changes)
    assert golden(folder, "a", file) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(file) in error
    assert error.count("\n") == 1


def test_what_is_no_recording_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("text.npz", b"no archive"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", images_base=np.array([{}], dtype=object))
    for name in ("text.npz", "empty.npz", "one.npy", "pickle.npz", "nowhere.npz"):
        assert golden(folder, "a", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert "not a readable NPZ file" in error
        assert error.count("\n") == 1


def test_nothing_of_the_runs_precision_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(JOINT / "golden_a.npz") as data:
        drop = {name: None for name in data if name.endswith("float32") or name == "ae_times"}
    assert golden(folder, "a", changed(tmp_path / "half.npz", JOINT / "golden_a.npz", **drop)) == 2
    assert "holds nothing that was computed in float32" in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scripted.yaml").write_text("policy: scripted\n")
    for argv, said in (
        ([], "use: python -m wpray.testing"),
        (["nothing"], "use: python -m wpray.testing"),
        (["golden", str(folder / "scripted.yaml"), "x.npz"], "its policy is scripted"),
        (["golden", str(folder / "a.yaml")], "FILE.npz"),
        (["golden", str(folder / "a.yaml"), "x.npz", "--precisoin", "float32"], "precisoin"),
    ):
        assert run_command(main, argv) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
