"""`wpray.soup` averages checkpoints of one layout, and refuses what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.models.checkpoint_files import vlm_shapes, write_hollow_shards
from tests.tiny_weights import block_size, joint_size, save, state_dict, write_checkpoints, write_joint
from wpray.cli.command import run_command
from wpray.models import averaging
from wpray.models.averaging import PROVENANCE
from wpray.models.checkpoint import open_joint
from wpray.models.config import VlmConfig, vlm_manifest
from wpray.provenance.record import file_sha256
from wpray.soup import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{vlm,ae}, folder/{one,two,three} of variant b and other seeds, folder/half in bfloat16."""
    made = tmp_path_factory.mktemp("soup")
    write_checkpoints(made)
    for seed, name in enumerate(("one", "two", "three")):
        write_joint(made / name, "b", seed=seed)
    write_joint(made / "half", "b", "bfloat16", seed=7)
    return made


def _soup(out: Path, *arguments: object) -> int:
    return run_command(main, [*map(str, arguments), "-o", str(out)])


def _metadata(out: Path) -> dict[str, Any]:
    with safe_open(out / "model.safetensors", framework="pt") as file:
        found: dict[str, Any] = file.metadata()
    return found


def test_the_average_is_the_plain_one_and_opens_again(folder: Path, tmp_path: Path) -> None:
    names, weights = ("one", "two", "three"), (0.5, 0.3, 0.2)
    out = tmp_path / "soup"
    assert _soup(out, *(folder / name for name in names), "--weights", *weights) == 0
    sources = [load_file(folder / name / "model.safetensors") for name in names]
    found = load_file(out / "model.safetensors")
    assert found.keys() == sources[0].keys()
    for name, tensor in found.items():
        expected = sum(weight * source[name].double() for weight, source in zip(weights, sources, strict=True))
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(tensor, expected.to(tensor.dtype))
        assert tensor.dtype == sources[0][name].dtype
    checkpoint, config = open_joint(out)
    assert config == joint_size("b")
    assert checkpoint.synthetic
    assert not list(out.glob(".*"))


def test_the_file_names_its_sources_with_digests_and_weights(folder: Path, tmp_path: Path) -> None:
    assert _soup(tmp_path / "soup", folder / "one", folder / "two" / "model.safetensors") == 0
    found = json.loads(_metadata(tmp_path / "soup")[PROVENANCE])["sources"]
    assert [source["weight"] for source in found] == [0.5, 0.5]
    for source, name in zip(found, ("one", "two"), strict=True):
        file = folder / name / "model.safetensors"
        assert source["path"] == str(file)
        assert source["sha256"] == {"model.safetensors": file_sha256(file)}


def test_dtypes_are_the_first_ones_and_an_average_with_itself_is_the_same(folder: Path, tmp_path: Path) -> None:
    assert _soup(tmp_path / "mixed", folder / "half", folder / "one", "-w", "0.25", "0.75") == 0
    half, mixed = (load_file(path / "model.safetensors") for path in (folder / "half", tmp_path / "mixed"))
    assert {name: own.dtype for name, own in mixed.items()} == {name: own.dtype for name, own in half.items()}
    for weights in (("0.1", "0.9"), ("0.3", "0.3", "0.4")):
        out = tmp_path / f"same{len(weights)}"
        assert _soup(out, *[folder / "half"] * len(weights), "-w", *weights) == 0
        same = load_file(out / "model.safetensors")
        assert all(torch.equal(same[name], own) for name, own in half.items())


def test_pieces_of_any_size_give_the_same_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _soup(tmp_path / "whole", folder / "one", folder / "two") == 0
    monkeypatch.setattr(averaging, "_VALUES", 100_000)
    assert _soup(tmp_path / "pieces", folder / "one", folder / "two") == 0
    whole, pieces = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pieces"))
    assert whole == pieces
    opened = averaging.open_alike([str(folder / "one"), str(folder / "two")], "model")
    for name in opened[0].stored:
        shape = opened[0].manifest[name][0]
        assert all(piece.numel() <= 100_000 for piece in averaging._averaged(opened, (0.5, 0.5), name, shape))


def test_both_names_of_the_embedding_and_nested_keys_are_one_layout(folder: Path, tmp_path: Path) -> None:
    state = state_dict(vlm_manifest(VlmConfig.tiny(), "float32"), seed=3)
    table = state.pop("paligemma.lm_head.weight")
    save({**state, "paligemma.model.language_model.embed_tokens.weight": table}, tmp_path / "other")
    assert _soup(tmp_path / "soup", folder / "vlm_nested", tmp_path / "other") == 0
    nested = load_file(folder / "vlm_nested" / "model.safetensors")
    found = load_file(tmp_path / "soup" / "model.safetensors")
    assert found.keys() == nested.keys()
    name = "paligemma_with_expert.paligemma.lm_head.weight"
    assert torch.equal(found[name], ((nested[name].double() + table.double()) / 2).float())


def test_shards_are_averaged_into_one_file(tmp_path: Path) -> None:
    write_hollow_shards(tmp_path / "shards", vlm_shapes())
    save(state_dict(vlm_manifest(VlmConfig.tiny(), "float32"), seed=3), tmp_path / "whole")
    assert _soup(tmp_path / "soup", tmp_path / "shards", tmp_path / "whole") == 0
    source = json.loads(_metadata(tmp_path / "soup")[PROVENANCE])["sources"][0]
    assert len(source["sha256"]) == 4  # the index and its shards


def test_metadata_go_along_and_must_agree_on_the_planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, condition in (("a", "none"), ("b", "none"), ("c", "current_state")):
        write_joint(tmp_path / name, block_size())
        recorded = {"planner_mode": "block_ar", "planner_block0_cond": condition, "global_step": len(name)}
        torch.save(recorded, tmp_path / name / "metadata.pt")
    assert _soup(tmp_path / "soup", tmp_path / "a", tmp_path / "b") == 0
    copied, original = (tmp_path / name / "metadata.pt" for name in ("soup", "a"))
    assert copied.read_bytes() == original.read_bytes()
    assert _soup(tmp_path / "other", tmp_path / "a", tmp_path / "c") == 2
    assert "differs from that of" in capsys.readouterr().err
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_what_cannot_be_averaged_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_joint(tmp_path / "a", "a")
    write_joint(tmp_path / "block", block_size())
    save({"x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter")
    done = tmp_path / "done"
    done.mkdir()
    (done / "model.safetensors").write_bytes(b"precious")
    one, two = folder / "one", folder / "two"
    for arguments, said in (
        ((one,), "needs two checkpoints"),
        ((one, folder / "vlm"), "is of another layout than"),
        ((one, tmp_path / "a"), "they differ in duration_embed.weight"),
        ((one, tmp_path / "block"), "they differ in block_planner."),
        ((one, tmp_path / "adapter"), "LoRA adapter"),
        ((one, tmp_path / "nowhere"), "no such file or folder"),
        ((one, two, "-w", "0.5"), "1 are given for 2 checkpoints"),
        ((one, two, "-w", "0.5", "0.6"), "they sum to 1.1"),
        ((one, two, "-w", "nan", "0.6"), "not a number from 0 to 1"),
    ):
        assert _soup(tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert _soup(done, one, two) == 2
    assert "holds model.safetensors already" in capsys.readouterr().err
    assert (done / "model.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "out").exists()
