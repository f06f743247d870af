"""Checkpoints as training leaves them: key layouts, tied weights, dtypes; and what is wrong with one, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_weights import save, state_dict
from wpray.errors import BadInputError
from wpray.models import token_rows
from wpray.models.checkpoint import TABLES, Checkpoint, open_action_expert, open_vlm
from wpray.models.config import ActionExpertConfig, Precision, VlmConfig, action_expert_manifest, vlm_manifest
from wpray.models.stored_table import StoredTable
from wpray.models.token_rows import TokenRows

DATA = Path(__file__).parents[1] / "data" / "golden"
CPU = torch.device("cpu")
JOINT = "paligemma_with_expert."
HEAD, TABLE = "paligemma.lm_head.weight", "paligemma.model.language_model.embed_tokens.weight"
EXPERT_HEAD = JOINT + "gemma_expert.lm_head.weight"
EXPERT_TABLE = JOINT + "gemma_expert.model.embed_tokens.weight"
PREFIX_NORM = JOINT + "paligemma.model.language_model.norm.weight"
DOWN_0 = "paligemma.model.language_model.layers.0.mlp.down_proj.weight"

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def vlm() -> State:
    return state_dict(vlm_manifest(VlmConfig.tiny(), "float32"), seed=0)


@pytest.fixture(scope="module")
def expert() -> State:
    return state_dict(action_expert_manifest(ActionExpertConfig.tiny(), "float32"), seed=0)


def _nested(state: State) -> State:
    return {JOINT + name: tensor for name, tensor in state.items()}


def _renamed(state: State, old: str, new: str) -> State:
    return {new if name == old else name: tensor for name, tensor in state.items()}


def _read(checkpoint: Checkpoint) -> State:
    (name,) = TABLES & checkpoint.stored.keys()
    table = checkpoint.table("float32")
    return {**dict(checkpoint.tensors(CPU, "float32")), name: table.take(range(len(table)))}


def _same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].float()), name


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("stored", ["lm_head", "embed_tokens", "both"])
def test_a_vlm_is_read_from_either_layout_under_either_name_of_its_tied_weights(
    tmp_path: Path, vlm: State, nested: bool, stored: str
) -> None:
    state = {"lm_head": vlm, "embed_tokens": _renamed(vlm, HEAD, TABLE), "both": {**vlm, TABLE: vlm[HEAD].clone()}}
    save(_nested(state[stored]) if nested else state[stored], tmp_path)
    checkpoint, config = open_vlm(tmp_path)
    assert config == VlmConfig.tiny()
    _same(_read(checkpoint), vlm)


def test_an_action_expert_is_read_under_either_name_and_without_what_is_unused(tmp_path: Path, expert: State) -> None:
    used = {name: tensor for name, tensor in expert.items() if name not in (EXPERT_HEAD, PREFIX_NORM)}
    tied = _renamed(expert, EXPERT_HEAD, EXPERT_TABLE)
    tied = _renamed(tied, JOINT + HEAD, JOINT + TABLE)
    for index, state in enumerate((expert, tied, used)):
        save(state, tmp_path / str(index))
        checkpoint, config = open_action_expert(tmp_path / str(index))
        assert config == ActionExpertConfig.tiny()
        _same(_read(checkpoint), used)


def test_a_training_step_a_model_directory_and_the_file_itself_mean_the_same(tmp_path: Path, vlm: State) -> None:
    step, model = tmp_path / "checkpoints" / "run" / "5000", tmp_path / "models" / "vlm"
    for folder in (step, model):
        save(vlm, folder)
        assert open_vlm(str(folder))[0].path == folder / "model.safetensors"
    assert open_vlm(model / "model.safetensors")[0].path == model / "model.safetensors"
    with pytest.raises(
        BadInputError,
        match=r"run: no checkpoint here, but in 5000 below; name a directory that holds model\.safetensors",
    ):
        open_vlm(step.parent)


def _without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (lambda state: _without(state, HEAD, DOWN_0), [f"missing: {HEAD}, {DOWN_0}"]),
        (lambda state: {**state, "a.b": torch.zeros(1), "c": torch.zeros(1)}, ["unknown: a.b, c"]),
        (lambda state: {**state, DOWN_0: torch.zeros(64, 7)}, [f"shape: {DOWN_0} (64, 7) instead of (64, 128)"]),
        (lambda state: {**state, HEAD: torch.zeros(())}, [f"shape: {HEAD} () instead of (257152, 64)"]),
        (
            lambda state: {**_without(state, HEAD), "extra": torch.zeros(1), DOWN_0: torch.zeros(7)},
            [f"missing: {HEAD}", "unknown: extra", f"shape: {DOWN_0} (7,) instead of (64, 128)"],
        ),
    ],
)
def test_whatever_is_missing_unknown_or_of_a_wrong_shape_is_listed(
    tmp_path: Path, vlm: State, change: Callable[[State], State], listed: list[str]
) -> None:
    save(change(vlm), tmp_path)
    with pytest.raises(BadInputError) as raised:
        open_vlm(tmp_path)
    assert (
        str(raised.value)
        == f"vlm_checkpoint: {tmp_path}/model.safetensors: not this model's checkpoint; {'; '.join(listed)}"
    )


def test_an_expert_of_an_odd_projection_is_refused_by_its_keys(tmp_path: Path, expert: State) -> None:
    save({**expert, "action_in_proj.weight": torch.zeros(32), "time_mlp_in.weight": torch.zeros(32, 32)}, tmp_path)
    with pytest.raises(BadInputError) as raised:
        open_action_expert(tmp_path)
    assert str(raised.value).endswith(
        "shape: action_in_proj.weight (32,) instead of (32, 32), time_mlp_in.weight (32, 32) instead of (32, 64)"
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_runs_precision_decides_whatever_a_file_stores(
    tmp_path: Path, stored: Precision, precision: Precision
) -> None:
    """In bfloat16 each tensor has the dtype that the recorded bfloat16 checkpoint has it in."""
    for name, manifest, read in (
        ("vlm", vlm_manifest(VlmConfig.tiny(), stored), open_vlm),
        ("ae", action_expert_manifest(ActionExpertConfig.tiny(), stored), open_action_expert),
    ):
        save(state_dict(manifest, seed=0), tmp_path / name)
        recorded = json.loads((DATA / f"{name}_manifest_bf16.json").read_text())
        checkpoint = read(tmp_path / name)[0]  # type: ignore[operator]
        (table,) = TABLES & checkpoint.stored.keys()
        for key, tensor in [*checkpoint.tensors(CPU, precision), (table, checkpoint.table(precision).take([7]))]:
            expected = recorded[key][1] if precision == "bfloat16" else "float32"
            assert tensor.dtype == getattr(torch, expected), key


def _anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def test_tensors_come_from_the_file_without_a_copy_of_it_in_memory(tmp_path: Path, vlm: State) -> None:
    save(vlm, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size / 2**20
    before = _anonymous_mb()
    checkpoint = open_vlm(tmp_path)[0]
    tensors, table = dict(checkpoint.tensors(CPU, "float32")), checkpoint.table("float32")
    assert table.take([0, 5]).shape == (2, 64)
    total = sum(float(tensor.sum()) for tensor in tensors.values())  # every page is read
    assert total == total
    assert _anonymous_mb() - before < size / 10


def test_rows_of_a_table_are_those_of_its_tensor_while_the_file_stays(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        path, values = tmp_path / "model.safetensors", torch.randn(50, 16).to(dtype)
        save_file({"other": torch.ones(3), "table": values}, path)
        table = StoredTable(path, "table", torch.float32)
        assert torch.equal(table.take([49, 0, 7, 0]), values[[49, 0, 7, 0]].float())
        for odd in (50, -1):
            with pytest.raises(ValueError, match=f"token {odd} is not of this vocabulary of 50"):
                table.take([3, odd])
        path.rename(tmp_path / "kept")  # as where a training run rotates its checkpoints
        assert torch.equal(table.take([3]), values[[3]].float())
        (tmp_path / "kept").unlink()
        assert torch.equal(table.take([4]), values[[4]].float())
    path.write_bytes(b"old")
    save_file({"table": values}, path)
    table = StoredTable(path, "table", torch.float32)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"model\.safetensors was overwritten while it is in use"):
        table.take([1])


def test_token_rows_make_room_and_keep_what_is_always_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "_CAPACITY", 6)
    values = torch.arange(40.0)[:, None].expand(-1, 4).contiguous()
    tokens = TokenRows(values, CPU, always=(9, 2))
    for prompts in ([[1, 2, 3]], [[3, 4], [5]], [[6, 1]], [[7, 8, 6, 1]], [[2, 9]]):
        found = tokens.places(prompts)
        for prompt, places in zip(prompts, found, strict=True):
            assert torch.equal(tokens.rows[places], 2 * values[prompt]), "times the root of the width"
        assert torch.equal(tokens.rows[tokens.places([[9, 2]])[0]], 2 * values[[9, 2]])
    with pytest.raises(ValueError, match="5 different tokens; 6 are the most"):
        tokens.places([[11, 12, 13, 14, 15]])
