"""Reads `dataset_statistics.json`: the file is checked as a whole before a number of it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from wpray.errors import BadInputError
from wpray.policy.normalize import NEEDED_STATISTICS, NormType, Scaling, scaling
from wpray.types import ACTION_DIM, PROPRIO_DIM, Float32Array

_MAX_BYTES = 16_000_000
_LARGEST = 1e30  # differences stay finite in float32
_FIELDS = ("action", "proprio")
_GRIPPER_STATE_DIM = 6  # of a proprio without the finger joints: the gripper is a token of its own
_GRIPPER_JOINT, _GRIPPER_OPEN = 6, np.float32(0.02)  # m; exactly this is closed
_SUM = "__total__"  # not a data set: what training counted over all of them
_KNOWN = ("mean", "std", "q01", "q99", "min", "max")
_REMEDY = "write it anew with: python -m wpray.dataset_stats RLDS_DIR -o FILE"


@dataclass(frozen=True, slots=True)
class PolicyScaling:
    """How a policy's actions (7) and proprio (8, or 6 in the newer token layout) are normalized."""

    action: Scaling
    proprio: Scaling
    proprio_dim: int = PROPRIO_DIM

    def state(self, proprio: ArrayLike) -> Float32Array:
        """Proprio (..., 8) as observed -> the planner's state, float32.

        With 8 statistics the normalized proprio (..., 8); with 6 its first six numbers and the gripper (..., 7), which
        is 1.0 open or 0.0 closed.
        """
        observed = np.asarray(proprio, dtype=np.float32)
        normalized = self.proprio.normalize(observed[..., : self.proprio_dim])
        if self.proprio_dim == PROPRIO_DIM:
            return normalized
        opened = (observed[..., _GRIPPER_JOINT, None] > _GRIPPER_OPEN).astype(np.float32)
        return np.concatenate([normalized, opened], axis=-1)


def load_scaling(path: Path, norm_type: NormType, suite: str) -> PolicyScaling:
    """The scalings in a statistics file, flat or nested under data set names.

    Of several data sets the one named after `suite` is taken. Raises BadInputError if the file cannot be read, is not
    strict JSON, names no data set for the suite, or holds numbers that cannot be statistics.
    """
    fields = _choose(path, _read(path), suite)
    proprio_dim = _proprio_dim(fields["proprio"], norm_type)
    action = _check(path, "action", fields["action"], ACTION_DIM, norm_type)
    proprio = _check(path, "proprio", fields["proprio"], proprio_dim, norm_type)
    return PolicyScaling(scaling(action, norm_type), scaling(proprio, norm_type), proprio_dim)


def _proprio_dim(statistics: Mapping[str, Any], norm_type: NormType) -> int:
    """6 if the file describes the newer layout's proprio, else 8."""
    first = statistics.get(NEEDED_STATISTICS[norm_type][0])
    return _GRIPPER_STATE_DIM if isinstance(first, list) and len(first) == _GRIPPER_STATE_DIM else PROPRIO_DIM


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"dataset_statistics_path: {path} cannot be read ({reason}); name a file") from error
    if len(raw) > _MAX_BYTES:
        raise BadInputError(f"{path}: larger than {_MAX_BYTES // 10**6} MB, which no statistics file is; {_REMEDY}")
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{path}: not readable as JSON ({reason}); {_REMEDY}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: must hold an object with action and proprio; {_REMEDY}")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _choose(path: Path, data: dict[str, Any], suite: str) -> dict[str, Any]:
    """The object that holds `action` and `proprio`."""
    if _is_fields(data):
        return data
    nested = {name: value for name, value in data.items() if isinstance(value, dict) and _is_fields(value)}
    nested.pop(_SUM, None)
    if not nested:
        raise BadInputError(f"{path}: holds no data set with both action and proprio; {_REMEDY}")
    chosen: dict[str, Any] = nested[_name_for(path, sorted(nested), suite)]
    return chosen


def _is_fields(value: dict[str, Any]) -> bool:
    return all(isinstance(value.get(field), dict) for field in _FIELDS)


def _name_for(path: Path, names: list[str], suite: str) -> str:
    """The only name; else the suite's own; else the suite's that a variant (`libero_object_swap`) derives from."""
    own = [name for name in names if f"_{suite}_" in f"_{name}_"]
    base = [name for name in names if f"_{suite}_".startswith(f"_{name.removesuffix('_no_noops')}_")]
    for found in (names, own, base):
        if len(found) == 1:
            return found[0]
    raise BadInputError(
        f"{path}: which of its data sets {', '.join(names)} belongs to {suite} is not clear; "
        "keep the one that the checkpoint was trained on"
    )


def _check(
    path: Path, field: str, statistics: Mapping[str, Any], dim: int, norm_type: NormType
) -> dict[str, Float32Array]:
    missing = [name for name in NEEDED_STATISTICS[norm_type] if name not in statistics]
    if missing:
        raise BadInputError(f"{path}: {field} has no {missing[0]}, which norm_type {norm_type} needs; {_REMEDY}")
    checked = {name: _vector(path, f"{field}.{name}", statistics[name], dim) for name in _KNOWN if name in statistics}
    for low, high in (("q01", "q99"), ("min", "max")):
        if low in checked and high in checked and (checked[low] > checked[high]).any():
            raise BadInputError(f"{path}: {field}.{low} is above {field}.{high}; {_REMEDY}")
    if "std" in checked and (checked["std"] < 0).any():
        raise BadInputError(f"{path}: {field}.std is negative; {_REMEDY}")
    return checked


def _vector(path: Path, name: str, value: Any, dim: int) -> Float32Array:
    if not isinstance(value, list) or len(value) != dim:
        found = f"{len(value)}" if isinstance(value, list) else type(value).__name__
        raise BadInputError(f"{path}: {name} must hold {dim} numbers, not {found}; {_REMEDY}")
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        raise BadInputError(f"{path}: {name} holds something that is not a number; {_REMEDY}")
    # Compared before the conversion: an integer may be too large for any float. False for NaN, too.
    if not all(-_LARGEST < item < _LARGEST for item in value):
        raise BadInputError(f"{path}: {name} holds a number that float32 cannot work with; {_REMEDY}")
    return np.array(value, dtype=np.float32)
