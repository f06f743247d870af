"""A joint model has one backbone: its weights are loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

from tests.tiny_weights import write_checkpoints, write_joint
from wpray.models.action_expert import ActionExpert
from wpray.models.layouts import ModelSettings, open_models
from wpray.models.loading import Computing, load
from wpray.models.vlm import WaypointVLM

HOW = Computing("float32", "float32", "float32", graphs=False, device=torch.device("cpu"))
HEADER = (4022, 235292, 235248)


def _tensors(found: object, known: set[int]) -> Iterator[torch.Tensor]:
    """Yield every tensor that an object of the models holds."""
    if id(found) in known:
        return
    known.add(id(found))
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict | list | tuple):
        for item in found.values() if isinstance(found, dict) else found:
            yield from _tensors(item, known)
    elif is_dataclass(found):
        for own in fields(found):
            yield from _tensors(getattr(found, own.name), known)
    elif type(found).__module__.startswith("wpray.models"):
        yield from _tensors(vars(found), known)


def _parameters(*models: object) -> int:
    """Return how many numbers the models hold; memory that two tensors share counts once."""
    known: set[int] = set()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.itemsize
        for tensor in _tensors(models, known)
    }
    return sum(storages.values())


def _load(given: ModelSettings) -> tuple[WaypointVLM, ActionExpert]:
    return load(open_models(given), HEADER, HOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharing")
    write_checkpoints(made)
    write_joint(made / "joint", "a")
    return made


def test_one_backbone_is_loaded_once(folder: Path) -> None:
    pair_files = (str(folder / "vlm"), str(folder / "ae"))
    pair = _load(ModelSettings(pair_files, None, None, "model", 8, folder))
    joint = _load(ModelSettings(None, str(folder / "joint"), None, "model", 6, folder))
    assert joint[0].backbone is joint[1].backbone
    assert pair[0].backbone is not pair[1].backbone
    backbone = _parameters(joint[0].backbone)
    both, alone = _parameters(*joint), [_parameters(model) for model in joint]
    assert sum(alone) - both == backbone  # all that they share, and all of it
    assert _parameters(*pair) == sum(_parameters(model) for model in pair)
    expert_alone = _parameters(pair[1]) - _parameters(pair[1].backbone)
    assert both < _parameters(*pair) - 0.9 * _parameters(pair[1].backbone)
    assert alone[1] - backbone == expert_alone
