"""Statistics of a training data set for normalization, checked as a whole before a number is used.

The numbers must be those that norm_type needs, in 7 and 8 dimensions (6 of proprio if the gripper is a token), in any
layout of the file (statistics_file.py). Statistics of openpi may be padded to 32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpray.errors import shown
from wpray.policies.waypoint_vla.normalize import NEEDED_STATISTICS, Masked, NormType, Scaling, scaling
from wpray.policies.waypoint_vla.statistics_file import KEY_SETTING, SETTING, bad_statistics, kind_of, select_data_set
from wpray.tracking import OPEN_FINGER, POSE_DIM
from wpray.types import ACTION_DIM, PROPRIO_DIM, Float32Array

_LARGEST = 1e30  # limit below which differences are finite in float32
_GRIPPER_STATE_DIM = 6  # of a proprio without finger joints, because the gripper is a token
_GRIPPER_JOINT = 6
_PADDED = 32  # width to which openpi pads
_GRIPPER = ACTION_DIM - 1
_KNOWN = ("mean", "std", "q01", "q99", "min", "max")
_PADDING = {"mean": (0,), "q01": (0,), "min": (0,), "std": (0, 1), "q99": (0, 1), "max": (0, 1)}

_Vectors = dict[str, Float32Array]


@dataclass(frozen=True, slots=True)
class PolicyScaling:
    """Scalings of a policy's actions (7) and proprio (8, or 6 in the newer token layout)."""

    action: Scaling
    proprio: Scaling
    proprio_dim: int = PROPRIO_DIM

    def state(self, proprio: ArrayLike) -> Float32Array:
        """Return the planner's state, float32, of proprio (..., 8) as observed.

        With 8 statistics the normalized proprio (..., 8); with 6 its first six numbers and the gripper (..., 7), which
        is 1.0 open or 0.0 closed.
        """
        observed = np.asarray(proprio, dtype=np.float32)
        normalized = self.proprio.normalize(observed[..., : self.proprio_dim])
        if self.proprio_dim == PROPRIO_DIM:
            return normalized
        opened = (observed[..., _GRIPPER_JOINT, None] > OPEN_FINGER).astype(np.float32)
        return np.concatenate([normalized, opened], axis=-1)

    def pose(self, state: Float32Array) -> tuple[Float32Array, bool]:
        """Return position (m) and axis-angle (rad), (6,), of a planner's state, and whether the gripper is open."""
        observed = self.proprio.denormalize(state[: self.proprio_dim])
        if self.proprio_dim == PROPRIO_DIM:
            return observed[:POSE_DIM], bool(observed[_GRIPPER_JOINT] > OPEN_FINGER)
        return observed, bool(state[-1] > 0.5)

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers that normalization uses, the same for every file and layout."""
        numbers = hashlib.sha256()
        for part in (self.action, self.proprio):
            plain, mask = (part.scaling, part.mask) if isinstance(part, Masked) else (part, None)
            numbers.update(type(plain).__name__.encode())
            for array in (*(getattr(plain, name) for name in plain.__slots__), mask):
                numbers.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return numbers.hexdigest()


@dataclass(frozen=True, slots=True)
class DataSetStatistics:
    """Statistics of a data set as in its file; `scaling` checks the numbers."""

    path: Path
    name: str | None  # of the data set; None if the file has none
    fits: bool  # the name fits the suite, or a setting chose it
    fields: Mapping[str, Mapping[str, Any]]  # action and proprio
    labels: Mapping[str, str]  # where the file has them: field -> dotted name

    @property
    def facts(self) -> dict[str, Any]:
        """Values for run.json: file, data set (null if the file names none), names of the fields."""
        return {"path": str(self.path), "data_set": self.name, "fields": dict(self.labels), "fits_suite": self.fits}

    def describe(self, suite: str) -> str:
        """Return the data set's name in a line, with a remark if it is not the suite's."""
        name = "one data set, without a name" if self.name is None else f"data set {shown(self.name)}"
        told = "" if self.fits else f", which is not named after {suite}: {KEY_SETTING} confirms it or names another"
        return f"{SETTING}: {self.path}: {name}{told}"

    def width(self, field: str) -> int:
        """Return the number of dimensions that `field` (action or proprio) has, without openpi's padding.

        Raise BadInputError if its statistics are not lists of the same length.
        """
        lists: dict[str, Any] = {name: value for name, value in self.fields[field].items() if name in _KNOWN}
        odd = [name for name, value in lists.items() if not isinstance(value, list)]
        if odd:
            self._refuse(f"{self.labels[field]}.{odd[0]} must hold a list of numbers, not {kind_of(lists[odd[0]])}")
        lengths = {len(value) for value in lists.values()}
        if len(lengths) != 1:
            self._refuse(f"{self.labels[field]} holds lists of different lengths: {sorted(lengths)}")
        return max(map(_unpadded, lists, lists.values())) if lengths == {_PADDED} else lengths.pop()

    def scaling(self, norm_type: NormType) -> PolicyScaling:
        """Return the scalings of actions (7) and proprio (8 or 6, as the file has them).

        The training code with 6 dimensions ignores `mask`. Raise BadInputError, which names the wrong number.
        """
        first = self.fields["proprio"].get(NEEDED_STATISTICS[norm_type][0])
        six = isinstance(first, list) and len(first) == _GRIPPER_STATE_DIM
        proprio_dim = _GRIPPER_STATE_DIM if six else PROPRIO_DIM
        action, proprio = (
            scaling(self._checked(field, dim, norm_type), norm_type, None if six else self._mask(field, dim))
            for field, dim in (("action", ACTION_DIM), ("proprio", proprio_dim))
        )
        return PolicyScaling(action, proprio, proprio_dim)

    def _checked(self, field: str, dim: int, norm_type: NormType) -> _Vectors:
        statistics, label = self.fields[field], self.labels[field]
        needed = NEEDED_STATISTICS[norm_type]
        missing = [name for name in needed if name not in statistics]
        if missing:
            found = ", ".join(map(shown, list(statistics)[:8])) or "nothing"
            self._refuse(f"{label} has no {missing[0]}, which norm_type {norm_type} needs (found: {found})")
        checked = {name: self._vector(field, name, dim) for name in _KNOWN if name in statistics}
        if any(len(statistics[name]) == _PADDED for name in checked) and self.width(field) != dim:
            self._refuse(f"{label} is padded to {_PADDED} from {self.width(field)} numbers, not from {dim}")
        for low, high in (("q01", "q99"), ("min", "max")):
            if low in checked and high in checked and (checked[low] > checked[high]).any():
                self._refuse(f"{label}.{low} is above {label}.{high}")
        if "std" in checked and (checked["std"] < 0).any():
            self._refuse(f"{label}.std is negative")
        return checked

    def _vector(self, field: str, name: str, dim: int) -> Float32Array:
        label, value = f"{self.labels[field]}.{name}", self.fields[field][name]
        if not isinstance(value, list) or len(value) not in (dim, _PADDED):
            found = f"{len(value)}" if isinstance(value, list) else type(value).__name__
            self._refuse(f"{label} must hold {dim} numbers, not {found}")
        if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            self._refuse(f"{label} holds something that is not a number")
        if any(item != item for item in value):
            self._refuse(f"{label} holds NaN, which is not a number")
        # Compared before the conversion, because an integer may be too large for a float.
        if not all(-_LARGEST < item < _LARGEST for item in value):
            self._refuse(f"{label} holds a number that float32 cannot work with")
        return np.array(value[:dim], dtype=np.float32)

    def _mask(self, field: str, dim: int) -> NDArray[np.bool_] | None:
        """Return (dim,) False where `field` is not normalized; None without a mask."""
        value, label = self.fields[field].get("mask"), f"{self.labels[field]}.mask"
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != dim or not all(isinstance(item, bool) for item in value):
            found = f"{len(value)} entries" if isinstance(value, list) else kind_of(value)
            self._refuse(f"{label} must hold {dim} times true or false, found {found}")
        if field == "proprio":
            return np.array(value)
        if value[_GRIPPER]:
            self._refuse(
                f"{label} says that the gripper (dimension {_GRIPPER}) is normalized, which this policy never does",
                "set it to false if the checkpoint was trained so",
            )
        return np.array([*value[:_GRIPPER], True])  # because the policy never scales the gripper

    def _refuse(self, found: str, *remedy: str) -> NoReturn:
        raise bad_statistics(self.path, found, *remedy)


def load_scaling(path: Path, norm_type: NormType, suite: str, key: str | None = None) -> PolicyScaling:
    """Return the scalings in a statistics file, as `read_statistics` selects them.

    Raise BadInputError as `read_statistics` does, or for numbers that cannot be statistics.
    """
    return read_statistics(path, suite, key).scaling(norm_type)


def read_statistics(path: Path, suite: str, key: str | None = None, benchmark: str = "auto") -> DataSetStatistics:
    """Return the statistics of the data set named `key`, else of the suite's own, else of the only one in the file.

    Raise BadInputError if the file cannot be read, is not JSON, or holds no data set with both fields, not the named
    one, or several candidates.
    """
    found = select_data_set(path, suite, key, benchmark)
    labels = {field: found.prefix + own for field, own in found.names.items()}
    return DataSetStatistics(
        path, found.name, found.fits, {field: found.data[own] for field, own in found.names.items()}, labels
    )


def read_for_suites(
    path: Path, suites: Sequence[str], key: str | None, norm_type: NormType, benchmark: str = "auto"
) -> DataSetStatistics:
    """Return the statistics that all suites of a run have, as `read_statistics` chooses them for the first.

    Raise BadInputError as `read_statistics` and `scaling` do, or if the suites' own data sets have other numbers: one
    policy normalizes by one.
    """
    found = [read_statistics(path, suite, key, benchmark) for suite in suites]
    digests = [its.scaling(norm_type).digest for its in found] if len(found) > 1 else []
    for suite, its, digest in zip(suites, found, digests, strict=False):
        if digest != digests[0]:
            remedy = f"choose one with {KEY_SETTING}, or evaluate the suites in runs of their own"
            raise bad_statistics(
                path,
                f"{suites[0]} has the data set {found[0].name}, {suite} has {its.name}, with other numbers",
                remedy,
            )
    return found[0]


def _unpadded(name: str, value: Sequence[Any]) -> int:
    """Return the number of entries before a statistic's trailing padding."""
    if value[-1] not in _PADDING[name]:
        return len(value)
    return next((index + 1 for index in reversed(range(len(value))) if value[index] != value[-1]), 0)
