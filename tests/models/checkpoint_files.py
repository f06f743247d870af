"""Checkpoint files without data: opening one looks at headers alone, so the files are holes of the right size."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wpray.models.config import ActionExpertConfig, TensorManifest, VlmConfig, action_expert_manifest, vlm_manifest
from wpray.models.random_weights import METADATA

Shapes = dict[str, Sequence[int]]
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}


def vlm_shapes() -> Shapes:
    """Return the tiny VLM's tensors."""
    return _shapes(vlm_manifest(VlmConfig.tiny(), "float32"))


def expert_shapes() -> Shapes:
    """Return the tiny action expert's tensors."""
    return _shapes(action_expert_manifest(ActionExpertConfig.tiny(), "float32"))


def write_hollow(file: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F32") -> Path:
    """Write a safetensors file whose tensors are zeros on no disk space, marked as synthetic; returns `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": METADATA}
    at = 0
    for name, shape in shapes.items():
        end = at + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)
    return file


def write_hollow_shards(folder: Path, shapes: Mapping[str, Sequence[int]], count: int = 3) -> dict[str, str]:
    """Write shards and their index; returns the name of each tensor's shard."""
    names, mapping = sorted(shapes), {}
    for number in range(count):
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        write_hollow(folder / shard, {name: shapes[name] for name in names[number::count]})
        mapping |= dict.fromkeys(names[number::count], shard)
    write_index(folder, mapping)
    return mapping


def write_index(folder: Path, mapping: object) -> None:
    """Write an index with this weight_map."""
    content = {"metadata": {"total_size": 1}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _shapes(manifest: TensorManifest) -> Shapes:
    return {name: shape for name, (shape, _) in manifest.items()}
