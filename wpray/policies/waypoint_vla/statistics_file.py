"""Reader of statistics files in all common layouts, which selects the data set of a run.

Layouts: `{action, proprio}`, alone or under data set names (RLDS, OpenVLA-OFT, starVLA's `state`), openpi's
`{norm_stats: {state, actions}}`, LeRobot's `{action, observation.state}`.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpray.benchmarks.base import Benchmark
from wpray.benchmarks.factory import benchmark_of
from wpray.errors import BadInputError, shown
from wpray.system.lfs import refuse_pointer

SETTING, KEY_SETTING = "dataset_statistics_path", "dataset_statistics_key"
_MAX_BYTES = 16_000_000
_FIELDS = {"action": ("action", "actions"), "proprio": ("proprio", "observation.state", "state")}
_TOTAL = "__total__"  # entry with sums over the data sets
_FILE_NAMES = ("dataset_statistics.json", "norm_stats.json", "meta/stats.json", "stats.json")
_REMEDY = "write it anew with: python -m wpray.dataset_stats RLDS_DIR -o FILE"


@dataclass(frozen=True, slots=True)
class FoundDataSet:
    """Data set in a file; its fields are objects whose content is not checked yet."""

    data: Mapping[str, Any]
    prefix: str  # of its names in the file, such as `norm_stats.`
    name: str | None  # None if the file has none
    fits: bool  # the name fits the suite, or a setting chose it

    @property
    def names(self) -> dict[str, str]:
        """Names of its action and proprio."""
        return {field: own for field in _FIELDS if (own := _own_name(self.data, field)) is not None}


def select_data_set(path: Path, suite: str, key: str | None, benchmark: str = "auto") -> FoundDataSet:
    """Return the data set named `key`, else the suite's own, else the only one in the file.

    `benchmark`: the setting of that name, by which `suite` is understood.

    Raise BadInputError if the file cannot be read, is not JSON, or holds no data set with both fields, not the named
    one, or several candidates.
    """
    data, prefix = _unwrapped(_read(path))
    if _is_data_set(data):
        if key is not None:
            raise BadInputError(f"{KEY_SETTING}: {path} holds one data set without a name, not {key!r}; leave it out")
        return FoundDataSet(data, prefix, None, fits=True)
    nested = {name: value for name, value in data.items() if isinstance(value, dict) and _is_data_set(value)}
    if not nested:
        found = "; ".join(_described(data, prefix)) or "nothing"
        raise bad_statistics(path, f"holds no data set with both action and proprio (found: {found})")
    names = sorted(nested)
    if key is not None:
        name, fits = _asked(path, names, key), True
    else:
        name, fits = _fitting(path, names, suite, benchmark_of(suite, benchmark))
    return FoundDataSet(nested[name], f"{prefix}{shown(name)}.", name, fits)


def kind_of(value: object) -> str:
    """Return the kind of a JSON value, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def bad_statistics(path: Path, found: str, remedy: str = _REMEDY) -> BadInputError:
    """Return the error for a statistics file, naming the setting, the file, what was found and what to do."""
    return BadInputError(f"{SETTING}: {path}: {found}; {remedy}")


def _read(path: Path) -> dict[str, Any]:
    raw = _bytes(path)
    if len(raw) > _MAX_BYTES:
        raise bad_statistics(path, f"is larger than {_MAX_BYTES // 10**6} MB, which no statistics file is")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise bad_statistics(path, "is text in UTF-16, not in UTF-8", "save it as UTF-8")
    try:
        data = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise bad_statistics(path, f"is not readable as JSON ({reason})") from error
    if not isinstance(data, dict):
        raise bad_statistics(path, f"must hold an object with action and proprio, not {kind_of(data)}")
    return data


def _bytes(path: Path) -> bytes:
    """Return the file's content, at most one byte more than is allowed."""
    refuse_pointer(path, SETTING)
    try:
        if path.is_dir():
            inside = next((name for name in _FILE_NAMES if (path / name).is_file()), None)
            raise bad_statistics(path, "is a folder", f"name a file, such as {path / (inside or _FILE_NAMES[0])}")
        if path.exists() and not path.is_file():  # because reading a pipe would wait for its writer
            raise bad_statistics(path, "is not a regular file", "name a file")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except BadInputError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{SETTING}: {path} cannot be read ({reason}); name a file") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _unwrapped(data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the content of `norm_stats`, in which openpi and OpenVLA wrap it, and the prefix of its names."""
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
        yield f"{prefix}{shown(name)}{inside}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(shown, list(names)[:8])) + (", ..." if len(names) > 8 else "")


def _asked(path: Path, names: Sequence[str], key: str) -> str:
    if key in names:
        return key
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {shown(near[0])}?" if near else f"it holds {', '.join(map(shown, names))}"
    raise BadInputError(f"{KEY_SETTING}: {path} has no data set {key!r}: {hint}")


def _fitting(path: Path, names: Sequence[str], suite: str, benchmark: Benchmark) -> tuple[str, bool]:
    """Return the suite's name, else that of a variant's base suite, else the only name, and True if it fits."""
    names = [name for name in names if name != _TOTAL] or list(names)
    own = [name for name in names if f"_{suite}_" in _words(name, benchmark)]
    base = [name for name in names if f"_{suite}_".startswith(_words(name.removesuffix("_no_noops"), benchmark))]
    for found in (own, base):
        if len(found) == 1:
            return found[0], True
    if len(names) == 1:
        return names[0], benchmark.fits_data_set(suite, _words(names[0], benchmark).strip("_"))
    listed = ", ".join(map(shown, names))
    raise bad_statistics(
        path,
        f"which of its data sets {listed} belongs to {suite} is not clear",
        f"set {KEY_SETTING} to the one that the checkpoint was trained on",
    )


def _words(name: str, benchmark: Benchmark) -> str:
    """Return `_name_` in lower case, words parted by `_`, with suites under the names that the benchmark gives them."""
    words = f"_{re.sub('[^a-z0-9]+', '_', name.lower())}_"
    for other, suite in benchmark.other_names.items():
        words = words.replace(f"_{other}_", f"_{suite}_")
    return words
