"""Statistics of a training data set, which normalization needs: found in a file, chosen, and checked as a whole.

Layouts that are read: `{action, proprio}`, alone or under data set names (RLDS, OpenVLA-OFT, starVLA's `state`),
openpi's `norm_stats.json` (`{norm_stats: {state, actions}}`, perhaps padded to 32) and LeRobot's `meta/stats.json`
(`action`, `observation.state`). The numbers decide, not the layout: each of them must hold what norm_type needs.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wpray.errors import BadInputError
from wpray.lfs import refuse_pointer
from wpray.policy.normalize import NEEDED_STATISTICS, Masked, NormType, Scaling, scaling
from wpray.types import ACTION_DIM, PROPRIO_DIM, Float32Array

SETTING, KEY_SETTING = "dataset_statistics_path", "dataset_statistics_key"
_MAX_BYTES = 16_000_000
_LARGEST = 1e30  # differences stay finite in float32
_PADDED = 32  # width to which openpi pads
_GRIPPER = ACTION_DIM - 1
_FIELDS = {"action": ("action", "actions"), "proprio": ("proprio", "observation.state", "state")}
_KNOWN = ("mean", "std", "q01", "q99", "min", "max")
_PADDING = {"mean": (0,), "q01": (0,), "min": (0,), "std": (0, 1), "q99": (0, 1), "max": (0, 1)}
_TOTAL = "__total__"  # sums over data sets, beside them
_BASE_SUITE = re.compile(r"_libero_(?:spatial|object|goal|10|90|100)_")
_FILE_NAMES = ("dataset_statistics.json", "norm_stats.json", "meta/stats.json", "stats.json")
_REMEDY = "write it anew with: python -m wpray.dataset_stats RLDS_DIR -o FILE"

_Vectors = dict[str, Float32Array]


@dataclass(frozen=True, slots=True)
class PolicyScaling:
    """How a policy's actions (7) and proprio (8) are normalized."""

    action: Scaling
    proprio: Scaling

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers that normalization uses, whatever file and layout they came from."""
        numbers = hashlib.sha256()
        for part in (self.action, self.proprio):
            plain, mask = (part.scaling, part.mask) if isinstance(part, Masked) else (part, None)
            numbers.update(type(plain).__name__.encode())
            for array in (*(getattr(plain, name) for name in plain.__slots__), mask):
                numbers.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return numbers.hexdigest()


@dataclass(frozen=True, slots=True)
class DataSetStatistics:
    """One data set's statistics as its file holds them; `scaling` checks the numbers."""

    path: Path
    name: str | None  # of the data set; None where the file gives none
    fits: bool  # the name fits the suite, or a setting chose it
    fields: Mapping[str, Mapping[str, Any]]  # action and proprio
    labels: Mapping[str, str]  # where the file has them: field -> dotted name

    def width(self, field: str) -> int:
        """Return the number of dimensions that `field` (action or proprio) has, without openpi's padding.

        Raises BadInputError if its statistics are not lists of the same length.
        """
        lists: dict[str, Any] = {name: value for name, value in self.fields[field].items() if name in _KNOWN}
        odd = [name for name, value in lists.items() if not isinstance(value, list)]
        if odd:
            self._refuse(f"{self.labels[field]}.{odd[0]} must hold a list of numbers, not {_kind(lists[odd[0]])}")
        lengths = {len(value) for value in lists.values()}
        if len(lengths) != 1:
            self._refuse(f"{self.labels[field]} holds lists of different lengths: {sorted(lengths)}")
        return max(map(_unpadded, lists, lists.values())) if lengths == {_PADDED} else lengths.pop()

    def scaling(self, norm_type: NormType, proprio_dim: int = PROPRIO_DIM) -> PolicyScaling:
        """Return the scalings of actions (7) and proprio. Raises BadInputError naming the number that is wrong."""
        return PolicyScaling(
            self._scaling("action", ACTION_DIM, norm_type), self._scaling("proprio", proprio_dim, norm_type)
        )

    def _scaling(self, field: str, dim: int, norm_type: NormType) -> Scaling:
        return scaling(self._checked(field, dim, norm_type), norm_type, self._mask(field, dim))

    def _checked(self, field: str, dim: int, norm_type: NormType) -> _Vectors:
        statistics, label = self.fields[field], self.labels[field]
        needed = NEEDED_STATISTICS[norm_type]
        missing = [name for name in needed if name not in statistics]
        if missing:
            found = _listed(statistics) or "nothing"
            self._refuse(f"{label} has no {missing[0]}, which norm_type {norm_type} needs (found: {found})")
        checked = {name: self._vector(field, name, dim) for name in _KNOWN if name in statistics}
        if len(statistics[needed[0]]) == _PADDED and self.width(field) != dim:
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
        # Compared before the conversion: an integer may be too large for any float.
        if not all(-_LARGEST < item < _LARGEST for item in value):
            self._refuse(f"{label} holds a number that float32 cannot work with")
        return np.array(value[:dim], dtype=np.float32)

    def _mask(self, field: str, dim: int) -> NDArray[np.bool_] | None:
        """Return (dim,) False where `field` is not normalized; None without a mask."""
        value, label = self.fields[field].get("mask"), f"{self.labels[field]}.mask"
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != dim or not all(isinstance(item, bool) for item in value):
            found = f"{len(value)} entries" if isinstance(value, list) else _kind(value)
            self._refuse(f"{label} must hold {dim} times true or false, found {found}")
        if field == "proprio":
            return np.array(value)
        if value[_GRIPPER]:
            self._refuse(
                f"{label} says that the gripper (dimension {_GRIPPER}) is normalized, which this policy never does",
                "set it to false if the checkpoint was trained so",
            )
        return np.array([*value[:_GRIPPER], True])  # the policy passes the gripper by anyway

    def _refuse(self, found: str, remedy: str = _REMEDY) -> NoReturn:
        raise _bad(self.path, found, remedy)


def load_scaling(path: Path, norm_type: NormType, suite: str, key: str | None = None) -> PolicyScaling:
    """Return the scalings in a statistics file, as `read_statistics` chooses them.

    Raises BadInputError as `read_statistics` does, or for numbers that cannot be statistics.
    """
    return read_statistics(path, suite, key).scaling(norm_type)


def read_statistics(path: Path, suite: str, key: str | None = None) -> DataSetStatistics:
    """Return the statistics of the data set called `key`, else of the suite's own, else of the only one in the file.

    Raises BadInputError if the file cannot be read, is not JSON, has no data set with both fields, not the one asked
    for, or several that may be meant.
    """
    data, prefix = _unwrapped(_read(path))
    if _is_data_set(data):
        if key is not None:
            raise BadInputError(f"{KEY_SETTING}: {path} holds one data set without a name, not {key!r}; leave it out")
        return _chosen(path, data, prefix, None, fits=True)
    nested = {name: value for name, value in data.items() if isinstance(value, dict) and _is_data_set(value)}
    if not nested:
        found = "; ".join(_described(data, prefix)) or "nothing"
        raise _bad(path, f"holds no data set with both action and proprio (found: {found})")
    name, fits = (_asked(path, sorted(nested), key), True) if key is not None else _fitting(path, sorted(nested), suite)
    return _chosen(path, nested[name], f"{prefix}{name}.", name, fits)


def _chosen(path: Path, data: Mapping[str, Any], prefix: str, name: str | None, fits: bool) -> DataSetStatistics:
    names = {field: own for field in _FIELDS if (own := _own_name(data, field)) is not None}
    labels = {field: prefix + own for field, own in names.items()}
    return DataSetStatistics(path, name, fits, {field: data[own] for field, own in names.items()}, labels)


def _read(path: Path) -> dict[str, Any]:
    raw = _bytes(path)
    if len(raw) > _MAX_BYTES:
        raise _bad(path, f"is larger than {_MAX_BYTES // 10**6} MB, which no statistics file is")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _bad(path, "is text in UTF-16, not in UTF-8", "save it as UTF-8")
    try:
        data = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _bad(path, f"is not readable as JSON ({reason})") from error
    if not isinstance(data, dict):
        raise _bad(path, f"must hold an object with action and proprio, not {_kind(data)}")
    return data


def _bytes(path: Path) -> bytes:
    """Return the file's content, at most one byte more than is allowed."""
    refuse_pointer(path, SETTING)
    try:
        if path.is_dir():
            inside = next((name for name in _FILE_NAMES if (path / name).is_file()), None)
            raise _bad(path, "is a folder", f"name a file, such as {path / (inside or _FILE_NAMES[0])}")
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise _bad(path, "is not a regular file", "name a file")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except BadInputError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{SETTING}: {path} cannot be read ({reason}); name a file") from error


def _bad(path: Path, found: str, remedy: str = _REMEDY) -> BadInputError:
    return BadInputError(f"{SETTING}: {path}: {found}; {remedy}")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _unwrapped(data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what openpi and OpenVLA wrap in `norm_stats`, and the prefix of its names."""
    inner = data.get("norm_stats")
    return (inner, "norm_stats.") if isinstance(inner, dict) and not _is_data_set(data) else (data, "")


def _own_name(value: Mapping[str, Any], field: str) -> str | None:
    return next((name for name in _FIELDS[field] if isinstance(value.get(name), dict)), None)


def _is_data_set(value: Mapping[str, Any]) -> bool:
    return all(_own_name(value, field) is not None for field in _FIELDS)


def _described(data: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield a few of an object's names, with the names inside them."""
    for name, value in list(data.items())[:6]:
        inside = f" ({_listed(value)})" if isinstance(value, dict) and value else ""
        yield f"{prefix}{_quoted(name)}{inside}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(_quoted, list(names)[:8])) + (", ..." if len(names) > 8 else "")


def _quoted(name: str) -> str:
    """Return a name from a file as it may stand in a line."""
    return name if re.fullmatch(r"[\w./-]{1,60}", name, re.ASCII) else ascii(name)[:60]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _unpadded(name: str, value: Sequence[Any]) -> int:
    """Return the number of entries before a statistic's trailing padding."""
    if value[-1] not in _PADDING[name]:
        return len(value)
    return next((index + 1 for index in reversed(range(len(value))) if value[index] != value[-1]), 0)


def _asked(path: Path, names: Sequence[str], key: str) -> str:
    if key in names:
        return key
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {_quoted(near[0])}?" if near else f"it holds {', '.join(map(_quoted, names))}"
    raise BadInputError(f"{KEY_SETTING}: {path} has no data set {key!r}: {hint}")


def _fitting(path: Path, names: Sequence[str], suite: str) -> tuple[str, bool]:
    """Return the suite's own name, else that of the suite that a variant (`libero_object_swap`) derives from, else the
    only one; and whether it fits.
    """
    names = [name for name in names if name != _TOTAL] or list(names)
    own = [name for name in names if f"_{suite}_" in _words(name)]
    base = [name for name in names if f"_{suite}_".startswith(_words(name.removesuffix("_no_noops")))]
    for found in (own, base):
        if len(found) == 1:
            return found[0], True
    if len(names) == 1:
        return names[0], fits(names[0], suite)
    listed = ", ".join(map(_quoted, names))
    raise _bad(
        path,
        f"which of its data sets {listed} belongs to {suite} is not clear",
        f"set {KEY_SETTING} to the one that the checkpoint was trained on",
    )


def fits(name: str, suite: str) -> bool:
    """Return True if a data set's name is the suite's, its base suite's, or that of a mixture of LIBERO suites."""
    if not suite.startswith("libero"):
        return True
    words, base = _words(name), _BASE_SUITE.match(f"_{suite}_")
    if f"_{suite}_" in words or (base and base.group() in words):
        return True
    return "libero" in words and not _BASE_SUITE.search(words)


def _words(name: str) -> str:
    """Return `_name_` in lower case, words parted by `_`, with LIBERO-Long under its suite's name."""
    return f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_".replace("_libero_long_", "_libero_10_")
