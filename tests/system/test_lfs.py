"""Git-LFS pointers in place of files give the same message wherever they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wpray.errors import BadInputError
from wpray.policies.waypoint_vla.statistics import load_scaling
from wpray.system.lfs import is_pointer, refuse_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 5873920104\n"


def _put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(POINTER)
    return path


def _vlm(folder: Path) -> None:
    from wpray.models.checkpoint import open_vlm

    open_vlm(folder)


def _expert(folder: Path) -> None:
    from wpray.models.checkpoint import open_action_expert

    open_action_expert(folder)


def _tokenizer(folder: Path) -> None:
    from wpray.policies.waypoint_vla.prompt import find_tokenizer, load_tokenizer

    load_tokenizer(find_tokenizer(folder, []), small=False)


def _rlds(folder: Path) -> None:
    from wpray.dataset_stats.rlds import find_data_sets, open_data_set

    (found,) = find_data_sets(folder)
    open_data_set(found)


def _shard(folder: Path) -> None:
    from tests.models.checkpoint_files import vlm_shapes, write_hollow_shards
    from wpray.models.checkpoint import open_vlm

    write_hollow_shards(folder, vlm_shapes())
    _put(folder / "model-00002-of-00003.safetensors")
    open_vlm(folder)


def _link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    _vlm(folder)


CASES: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "VLM": ("vlm_checkpoint: ", "model.safetensors", _vlm),
    "action expert": ("ae_checkpoint: ", "model.safetensors", _expert),
    "link": ("vlm_checkpoint: ", "model.safetensors", _link),
    "index": ("vlm_checkpoint: ", "model.safetensors.index.json", _vlm),
    "shard": ("vlm_checkpoint: ", "model-00002-of-00003.safetensors", _shard),
    "tokenizer": ("tokenizer_path: ", "tokenizer.model", _tokenizer),
    "statistics": (
        "dataset_statistics_path: ",
        "dataset_statistics.json",
        lambda folder: load_scaling(folder / "dataset_statistics.json", "q99", "libero_object"),
    ),
    "RLDS info": ("", "dataset_info.json", _rlds),
    "RLDS features": ("", "features.json", _rlds),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pointer_is_refused_as_one(tmp_path: Path, case: str) -> None:
    if CASES[case][2] not in (_rlds, load_scaling):
        pytest.importorskip("torch")
    setting, name, read = CASES[case]
    if read is _rlds:
        for other in ("dataset_info.json", "features.json"):
            (tmp_path / other).write_text("{}")
    path = _put(tmp_path / name)
    with pytest.raises(BadInputError) as raised:
        read(tmp_path)
    assert str(raised.value) == f"{setting}{path} is a git-lfs pointer; run: git lfs pull"


def test_nothing_else_is_a_pointer_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(POINTER[:20])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "later").write_bytes(b"\n" + POINTER)
    for name in ("pipe", "short", "empty", "later", "absent", ".", "x" * 5000):
        assert not is_pointer(tmp_path / name), name
        refuse_pointer(tmp_path / name)
