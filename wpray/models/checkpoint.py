"""Checkpoints: found, checked by their headers, and read straight to the device. safetensors only, never a pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wpray.errors import BadInputError
from wpray.models.config import (
    ActionExpertConfig,
    Manifest,
    Precision,
    VlmConfig,
    action_expert_manifest,
    infer_action_expert_config,
    infer_vlm_config,
    vlm_manifest,
)
from wpray.models.stored_table import StoredTable

_FILE = "model.safetensors"
_MAX_HEADER = 100_000_000
_DTYPES = ("F32", "BF16", "F16", "F64")
_NESTED = "paligemma_with_expert."
_TIED = {  # name in the manifest -> the other name under which the same tensor may be stored
    "paligemma.lm_head.weight": "paligemma.model.language_model.embed_tokens.weight",
    "paligemma_with_expert.paligemma.lm_head.weight": (
        "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    ),
    "paligemma_with_expert.gemma_expert.lm_head.weight": (
        "paligemma_with_expert.gemma_expert.model.embed_tokens.weight"
    ),
}
TABLES = frozenset({"paligemma.lm_head.weight", "paligemma_with_expert.paligemma.lm_head.weight"})
SYNTHETIC = "wpray.synthetic"  # in the metadata of a file of random weights
UNUSED = frozenset(
    {
        "paligemma_with_expert.gemma_expert.lm_head.weight",
        "paligemma_with_expert.paligemma.model.language_model.norm.weight",
    }
)
UNUSED_OF_JOINT = frozenset({"paligemma_with_expert.gemma_expert.lm_head.weight"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose header agrees with its model's layout."""

    path: Path
    stored: dict[str, str]  # manifest name -> name in the file
    manifest: Manifest
    synthetic: bool = False  # random weights of `python -m wpray.models.synthetic`
    unused: frozenset[str] = UNUSED  # manifest names that may be absent, and are not read

    def tensors(self, device: torch.device, precision: Precision) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all that is used, one at a time, on `device`, in the dtype that `precision` means.

        Without the embedding table, which is for `table`.
        """
        with safe_open(self.path, framework="pt", device=str(device)) as file:
            for name, stored in self.stored.items():
                if name not in self.unused | TABLES:
                    yield name, file.get_tensor(stored).to(self._dtype(name, precision))

    def table(self, precision: Precision) -> StoredTable:
        """The embedding table, whose rows are read when they are asked for."""
        (name,) = TABLES & self.stored.keys()
        return StoredTable(self.path, self.stored[name], self._dtype(name, precision))

    def _dtype(self, name: str, precision: Precision) -> torch.dtype:
        return getattr(torch, self.manifest[name][1]) if precision == "bfloat16" else torch.float32


def resolve_checkpoint(path: str | Path) -> Path:
    """The safetensors file of a training step's or a model's directory. Raises BadInputError if there is none."""
    path = Path(path).expanduser()
    file = path / _FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise BadInputError(f"{path}: no checkpoint here; name a directory that holds {_FILE}")
    return file


def open_vlm(path: str | Path) -> tuple[Checkpoint, VlmConfig]:
    """The VLM checkpoint at `path`, of either key layout. Raises BadInputError listing every key that is wrong."""
    file = resolve_checkpoint(path)
    shapes = read_header(file)
    nested = any(name.startswith(_NESTED + "paligemma.") for name in shapes)
    stored = {name.removeprefix(_NESTED) if nested else name: name for name in shapes}
    config = infer_vlm_config({name: shapes[key] for name, key in stored.items()})
    return _checked(file, shapes, stored, vlm_manifest(config, "bfloat16")), config


def open_action_expert(path: str | Path) -> tuple[Checkpoint, ActionExpertConfig]:
    """The action expert checkpoint at `path`. Raises BadInputError listing every key that is wrong."""
    file = resolve_checkpoint(path)
    shapes = read_header(file)
    config = infer_action_expert_config(shapes)
    return _checked(file, shapes, {name: name for name in shapes}, action_expert_manifest(config, "bfloat16")), config


def open_joint(path: str | Path) -> tuple[Checkpoint, ActionExpertConfig]:
    """The joint checkpoint at `path`: an action expert whose backbone plans, too.

    Raises BadInputError listing every key that is wrong.
    """
    file = resolve_checkpoint(path)
    shapes = read_header(file)
    config = infer_action_expert_config(shapes)
    manifest = action_expert_manifest(config, "bfloat16")
    return _checked(file, shapes, {name: name for name in shapes}, manifest, UNUSED_OF_JOINT), config


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the file's header alone. Raises BadInputError if there is no valid one."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        with safe_open(path, framework="pt"):  # checks offsets against the file's size
            pass
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        odd = [name for name, entry in tensors.items() if entry["dtype"] not in _DTYPES]
        if odd:
            raise ValueError(f"{odd[0]} has dtype {tensors[odd[0]]['dtype']}")
        return {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (
        OSError,
        ValueError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
        struct.error,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInputError(f"{path}: not a safetensors file ({reason}); copy it again") from error


def _checked(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    stored: dict[str, str],
    manifest: Manifest,
    unused: frozenset[str] = UNUSED,
) -> Checkpoint:
    """Matches what is stored with what is expected, by name and shape."""
    found: dict[str, str] = {}
    for name in manifest:
        other = _TIED.get(name, "")
        if name in stored or other in stored:
            found[name] = stored[name] if name in stored else stored[other]
    known = set(found.values()) | {stored[other] for other in _TIED.values() if other in stored}
    missing = sorted(set(manifest) - set(found) - unused)
    extra = sorted(set(shapes) - known)
    wrong = sorted(
        f"{n} {shapes[k]} instead of {manifest[n][0]}" for n, k in found.items() if shapes[k] != manifest[n][0]
    )
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unknown", extra), ("shape", wrong))
        if names
    ]
    if problems:
        raise BadInputError(f"{path}: not this model's checkpoint; {'; '.join(problems)}")
    with safe_open(path, framework="pt") as file:
        synthetic = SYNTHETIC in (file.metadata() or {})
    return Checkpoint(path, found, manifest, synthetic, unused)
