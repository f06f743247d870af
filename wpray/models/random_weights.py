"""Random weights in a checkpoint's exact layout, written in pieces so that memory stays small for any model.

The safetensors library writes only tensors that are in memory as a whole. The format is a header, followed by the
tensors' bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wpray.models.checkpoint import SYNTHETIC
from wpray.models.config import Precision, TensorManifest

METADATA = {"format": "pt", SYNTHETIC: "random weights"}
_PIECE = 2**24  # values drawn at once
_SHARP = ("q_proj", "k_proj", "o_proj", "down_proj")  # larger, so that greedy decoding has clear winners
_STORED: dict[Precision, tuple[str, int]] = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}


def weight(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Return the tensor `name`, which depends only on name, shape and seed; activations keep their scale."""
    return np.concatenate(list(_pieces(name, shape, seed, _PIECE))).reshape(shape)


def write_random(
    manifest: TensorManifest,
    seed: int,
    folder: Path,
    zero_rows: Mapping[str, Sequence[int]] | None = None,
    piece: int = _PIECE,
) -> None:
    """Write folder/model.safetensors with a manifest's tensors, marked as synthetic; `zero_rows` of a tensor are zero.

    Raise OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = _layout(manifest)
    text = json.dumps({"__metadata__": METADATA, **layout}).encode()
    header = text + b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.flush()
        start = file.tell()

        def write(name: str) -> None:
            at = start + layout[name]["data_offsets"][0]
            for values in _pieces(name, manifest[name][0], seed, piece):
                at += _write_all(file.fileno(), _stored(values, manifest[name][1]), at)

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            list(threads.map(write, layout))
        for name, rows in (zero_rows or {}).items():
            first, last = layout[name]["data_offsets"]
            size = (last - first) // manifest[name][0][0]
            for row in rows:
                _write_all(file.fileno(), bytes(size), start + first + row * size)


def _layout(manifest: TensorManifest) -> dict[str, dict[str, Any]]:
    """Return the header's entries, with the wider type first so that every tensor is aligned."""
    layout, at = {}, 0
    for name in sorted(manifest, key=lambda name: (manifest[name][1] != "float32", name)):
        shape, precision = manifest[name]
        dtype, size = _STORED[precision]
        end = at + size * math.prod(shape)
        layout[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return layout


def _pieces(name: str, shape: tuple[int, ...], seed: int, piece: int) -> Iterator[NDArray[np.float32]]:
    """Yield the tensor's values in order, at most `piece` at once."""
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    scale, offset = _scale(name, shape)
    for left in range(math.prod(shape), 0, -piece):
        values: NDArray[np.float32] = rng.standard_normal(min(left, piece), dtype=np.float32)
        values *= scale
        if offset:
            values += offset
        yield values


def _scale(name: str, shape: tuple[int, ...]) -> tuple[np.float32, np.float32]:
    """Return the factor and the offset of a tensor's normal numbers."""
    zero = np.float32(0)
    if "lm_head" in name or "embed_tokens" in name:
        return np.float32(0.01), zero
    if len(shape) > 1:
        gain = np.float32(3.0 if any(part in name for part in _SHARP) else 1.0)
        return gain / np.sqrt(np.prod(shape[1:], dtype=np.float64)).astype(np.float32), zero
    if name.endswith("bias"):
        return np.float32(0.02), zero
    return np.float32(0.1), np.float32("layer_norm" in name or "post_layernorm" in name)


def _stored(values: NDArray[np.float32], precision: Precision) -> memoryview:
    tensor = torch.from_numpy(values).to(getattr(torch, precision))
    return tensor.view(torch.uint8).numpy().data


def _write_all(file: int, data: bytes | memoryview, at: int) -> int:
    """Write `data` at an offset of an open file. Return its length."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, memoryview(data)[done:], at + done)
    return done
