"""Headers of a checkpoint: one safetensors file, or the shards that an index names.

Only headers are read. A header is JSON after its length; safetensors checks the offsets against the file's size.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wpray.errors import BadInputError, shown
from wpray.system.lfs import refuse_pointer

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
_MAX_BYTES = 100_000_000  # largest header or index
_DTYPES = ("F32", "BF16", "F16", "F64")
_BROKEN = (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, struct.error, SafetensorError)


@dataclass(frozen=True, slots=True)
class Header:
    """Tensors of a checkpoint, by their names in the files."""

    path: Path  # the file, or the index
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # in safetensors' names: F32, BF16, F16, F64
    places: dict[str, Path]  # file of each tensor
    files: tuple[Path, ...]  # all files of the checkpoint, an index first
    metadata: dict[str, str]


def is_index(path: Path) -> bool:
    """Return True for the name of an index of shards."""
    return path.name.endswith(_INDEX_SUFFIX)


def read_headers(path: Path, setting: str) -> Header:
    """Return the header of a safetensors file, or of all the shards that an index names.

    Raise BadInputError that names `setting`, the file, and what is damaged, missing or not as the index says.
    """
    return _read_shards(path, setting) if is_index(path) else read_header(path, setting)


def read_header(path: Path, setting: str) -> Header:
    """Return the header of one safetensors file. Raise BadInputError if it is not valid."""
    refuse_pointer(path, setting)
    try:
        tensors = _tensors(path)
        with safe_open(path, framework="pt") as file:  # checks offsets against the file's size
            metadata = file.metadata() or {}
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in tensors.items()}
    except _BROKEN as error:
        raise BadInputError(f"{setting}: {path}: not a safetensors file ({_reason(error)}); copy it again") from error
    odd = [name for name, dtype in dtypes.items() if dtype not in _DTYPES]
    if odd:
        found = f"{shown(odd[0])} has dtype {shown(dtypes[odd[0]])}"
        raise BadInputError(f"{setting}: {path}: {found}; save the weights as one of {', '.join(_DTYPES)}")
    return Header(path, shapes, dtypes, dict.fromkeys(shapes, path), (path,), metadata)


def summary(names: Iterable[str]) -> list[str]:
    """Return groups of tensor names with their sizes, such as `paligemma.model.* (51)`, in order."""
    counted = Counter(".".join(name.split(".")[:-1][:2]) + ".*" if "." in name else name for name in names)
    return [f"{shown(group)} ({count})" for group, count in sorted(counted.items())]


def _tensors(path: Path) -> dict[str, Any]:
    """Return the header's entries by tensor name. Raise one of `_BROKEN` if they cannot be read."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_BYTES, path.stat().st_size):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _read_shards(index: Path, setting: str) -> Header:
    mapping = _weight_map(index, setting)
    files = [index.parent / name for name in sorted(set(mapping.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        _refuse(index, setting, f"names shards that are not there: {_listed(absent)}", "copy them beside it")
    shards = [read_header(file, setting) for file in files]
    _check_coverage(index, setting, mapping, shards)
    return Header(
        index,
        {name: shape for shard in shards for name, shape in shard.shapes.items()},
        {name: dtype for shard in shards for name, dtype in shard.dtypes.items()},
        {name: place for shard in shards for name, place in shard.places.items()},
        (index, *files),
        {name: text for shard in shards for name, text in shard.metadata.items()},
    )


def _weight_map(index: Path, setting: str) -> dict[str, str]:
    """Return the name of each tensor's shard. Raise BadInputError if the index is not valid."""
    refuse_pointer(index, setting)
    try:
        with index.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError("it is larger than 100 MB")
        mapping = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)["weight_map"]
        if not isinstance(mapping, dict) or not mapping:
            raise ValueError("its weight_map names no tensors")
        odd = [file for file in mapping.values() if not _is_shard_name(file)]
        if odd:
            raise ValueError(f"{shown(repr(odd[0]))} is not the name of a safetensors file beside it")
    except _BROKEN as error:
        raise BadInputError(f"{setting}: {index}: not an index of shards ({_reason(error)}); copy it again") from error
    return mapping


def _is_shard_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(_SUFFIX) and name.isprintable() and Path(name).name == name


def _check_coverage(index: Path, setting: str, mapping: Mapping[str, str], shards: Sequence[Header]) -> None:
    """Raise BadInputError unless the shards hold exactly the tensors that the index lists for them."""
    named = set(mapping.items())
    there = {(name, shard.path.name) for shard in shards for name in shard.shapes}
    lacking, surplus = sorted(named - there), sorted(there - named)
    problems = [
        f"{what}: {_listed(f'{name} in {file}' for name, file in pairs)}"
        for what, pairs in (("not in its shard", lacking), ("not in the index", surplus))
        if pairs
    ]
    if problems:
        _refuse(index, setting, f"does not fit its shards; {'; '.join(problems)}", "copy index and shards again")


def _refuse(index: Path, setting: str, found: str, remedy: str) -> None:
    raise BadInputError(f"{setting}: {index}: {found}; {remedy}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no {shown(str(error.args[0]))}"
    return " ".join(str(error).split())[:200] or type(error).__name__
