"""Checkpoints as training leaves them: key layouts, tied weights, dtypes; and what is wrong with one, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny_weights import save, state_dict
from wpray.errors import BadInputError
from wpray.models.checkpoint import Checkpoint, open_action_expert, open_vlm
from wpray.models.config import ActionExpertConfig, Precision, VlmConfig, action_expert_manifest, vlm_manifest

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
    return dict(checkpoint.tensors(CPU, "float32"))


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
    with pytest.raises(BadInputError, match=r"run: no checkpoint here; name a directory that holds model\.safetensors"):
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
    assert str(raised.value) == f"{tmp_path}/model.safetensors: not this model's checkpoint; {'; '.join(listed)}"


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
        for key, tensor in read(tmp_path / name)[0].tensors(CPU, precision):  # type: ignore[operator]
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
    tensors = _read(open_vlm(tmp_path)[0])
    total = sum(float(tensor.sum()) for tensor in tensors.values())  # every page is read
    assert total == total
    assert _anonymous_mb() - before < size / 10
