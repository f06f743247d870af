"""Weighted averages of checkpoints of one layout, computed in pieces so that memory stays small for any model.

Sums are made in float64 and rounded once to the dtype of the first checkpoint, so the average of a checkpoint with
itself is the same to the bit.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wpray.errors import BadInputError
from wpray.models.checkpoint import SYNTHETIC, Checkpoint, open_action_expert, open_vlm
from wpray.models.header import read_headers
from wpray.models.layouts import FileName, choose_file
from wpray.models.metadata import read_metadata
from wpray.models.tensor_names import EXPERT_PARTS, plain_names

PROVENANCE = "wpray.soup"  # key in the metadata of an averaged file
_VALUES = 2**24  # numbers that are computed at once
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_METADATA_OF_LAYOUT = ("planner_", "goal_")


def open_alike(paths: Sequence[str], prefer: FileName) -> list[Checkpoint]:
    """Return checkpoints of one layout: all VLMs, all action experts, or all joint models with the same planner.

    Raise BadInputError if one is of no known layout, or differs from the first in tensors or shapes.
    """
    opened = [_open(path, prefer) for path in paths]
    first = opened[0]
    for other in opened[1:]:
        unlike = sorted(set(first.manifest.items()) ^ set(other.manifest.items()))
        absent = sorted(first.stored.keys() ^ other.stored.keys())
        if unlike or absent:
            name = unlike[0][0] if unlike else absent[0]
            raise BadInputError(f"{other.path}: is of another layout than {first.path}: they differ in {name}")
    _check_metadata(opened)
    return opened


def average(checkpoints: Sequence[Checkpoint], weights: Sequence[float], file: Path, provenance: Any) -> None:
    """Write the weighted average as one safetensors file, with `provenance` as JSON in its metadata.

    Names and dtypes are the first one's. Raise OSError if it cannot be written.
    """
    first = checkpoints[0]
    entries = _entries(first)
    marks = {SYNTHETIC: "random weights"} if any(one.synthetic for one in checkpoints) else {}
    metadata = {"format": "pt", PROVENANCE: json.dumps(provenance), **marks}
    text = json.dumps({"__metadata__": metadata, **{first.stored[name]: entry for name, entry in entries.items()}})
    header = text.encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for name, entry in entries.items():
            kind = _DTYPES[entry["dtype"]]
            for piece in _averaged(checkpoints, weights, name, entry["shape"]):
                out.write(piece.to(kind).contiguous().flatten().view(torch.uint8).numpy().data)
        out.flush()
        os.fsync(out.fileno())


def _open(path: str, prefer: FileName) -> Checkpoint:
    file = choose_file("CHECKPOINT", path, prefer).path
    names = plain_names(read_headers(file, "CHECKPOINT").shapes).stored
    opener = open_action_expert if any(name.startswith(EXPERT_PARTS) for name in names) else open_vlm
    return opener(file, "CHECKPOINT")[0]


def _check_metadata(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise BadInputError if the metadata beside two checkpoints record different planners."""
    recorded = [_of_layout(read_metadata(one.path, "CHECKPOINT") or {}) for one in checkpoints]
    for one, own in zip(checkpoints[1:], recorded[1:], strict=True):
        unlike = sorted(name for name in own.keys() & recorded[0].keys() if own[name] != recorded[0][name])
        if unlike:
            first = checkpoints[0].path
            raise BadInputError(f"{one.path}: its metadata.pt differs from that of {first} in {', '.join(unlike)}")


def _of_layout(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if str(name).startswith(_METADATA_OF_LAYOUT)}


def _entries(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return the header's entries by manifest name; wider types come first, so that every tensor is aligned."""
    kinds = {name: checkpoint.dtypes[stored] for name, stored in checkpoint.stored.items()}
    entries, at = {}, 0
    for name in sorted(kinds, key=lambda name: (-_DTYPES[kinds[name]].itemsize, name)):
        shape = checkpoint.manifest[name][0]
        end = at + _DTYPES[kinds[name]].itemsize * math.prod(shape)
        entries[name] = {"dtype": kinds[name], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return entries


def _averaged(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float], name: str, shape: Sequence[int]
) -> Iterator[Tensor]:
    """Yield a tensor's average in float64, some rows at a time."""
    rows = max(1, _VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        total: Tensor | None = None
        for checkpoint, weight in zip(checkpoints, weights, strict=True):
            stored = checkpoint.stored[name]
            with safe_open(checkpoint.places.get(stored, checkpoint.path), framework="pt") as file:
                piece = file.get_slice(stored)[start : start + rows].double() * weight
            total = piece if total is None else total.add_(piece)
        assert total is not None
        yield total
