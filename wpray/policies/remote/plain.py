"""Conversion of a server's description to JSON values, for run.json and for comparison with other servers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_LONGEST = 100  # numbers of an array, entries of a map or list
_LONGEST_TEXT = 1000
_DEEPEST = 6


def plain(value: Any, depth: int = 0) -> Any:
    """Return `value` of text, numbers, lists and maps; large values and other kinds become descriptions."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist() if value.size <= _LONGEST else f"array of the shape {value.shape}, {value.dtype}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping | list | tuple):
        return _container(value, depth)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def _container(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> Any:
    if len(value) > _LONGEST or depth >= _DEEPEST:
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        return {_name(key): plain(item, depth + 1) for key, item in value.items()}
    return [plain(item, depth + 1) for item in value]


def _name(key: Any) -> str:
    return key.decode("ascii", "backslashreplace") if isinstance(key, bytes) else str(key)
