"""Checkpoints of a sweep: every combination of the paths that its settings name, in natural order."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from wpray.cli.configuration import expand_paths, validate
from wpray.config import Config, path_fields
from wpray.errors import BadInputError
from wpray.results.names import safe_name
from wpray.system.paths import expand

_SINGLE = ("output_dir", "video_out_path", "init_states_file")  # paths that a whole sweep shares
SWEPT = tuple(name for name in path_fields() if name not in _SINGLE)
_ARGS = "policy_args"
_DIGITS = 6  # of the digest that makes a folder's name unique


@dataclass(frozen=True, slots=True)
class SweepCheckpoint:
    """One combination of paths, and the configuration that evaluates it."""

    paths: Mapping[str, str]  # by setting
    config: Config

    @property
    def name(self) -> str:
        """Name of its run's folder; it depends on the paths alone, so that it stays when others come."""
        said = "+".join("_".join(PurePath(path).parts[-2:]) for path in self.paths.values())
        digest = hashlib.sha256(repr(sorted(self.paths.items())).encode()).hexdigest()[:_DIGITS]
        return f"{safe_name(said)[-100:]}-{digest}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Settings of a sweep: those that all of its runs share, and paths or patterns of the others."""

    shared: Mapping[str, Any]
    patterns: Mapping[str, Sequence[str]]  # by setting, in the order of the axes

    def checkpoints(self) -> list[SweepCheckpoint]:
        """Return the combinations that exist now. Raises BadInputError if one is no valid configuration."""
        axes = [self.found(name) for name in self.patterns]
        return [self.checkpoint(dict(zip(self.patterns, paths, strict=True))) for paths in itertools.product(*axes)]

    def checkpoint(self, paths: Mapping[str, str]) -> SweepCheckpoint:
        """Return the checkpoint of these paths, by setting. Raises BadInputError if they are no valid configuration."""
        data = {**self.shared, _ARGS: dict(self.shared[_ARGS])}
        for name, path in paths.items():
            group, dot, field = name.partition(".")
            if dot:
                data[group][field] = path
            else:
                data[name] = path
        return SweepCheckpoint(paths, expand_paths(validate(data)))

    @property
    def template(self) -> Config:
        """Configuration with patterns in place of paths: what all runs share. Raises BadInputError if it is wrong."""
        return self.checkpoint({name: paths[0] for name, paths in self.patterns.items()}).config

    @property
    def asks_for_videos(self) -> bool:
        """True if the settings give video.mode; a sweep renders none by default."""
        return bool((self.shared.get("video") or {}).get("mode"))

    def found(self, name: str) -> list[str]:
        """Return the paths of a setting, in natural order. Raises BadInputError for one that cannot be expanded."""
        found: dict[str, None] = {}
        for pattern in self.patterns[name]:
            try:
                path = expand(pattern)
            except ValueError as error:
                raise BadInputError(f"{name}: {pattern[:100]}: {error}") from error
            found |= dict.fromkeys(glob.glob(path, recursive=True) if is_pattern(path) else [path])
        return sorted(found, key=natural)

    def unmatched(self) -> str | None:
        """Return the setting whose patterns match nothing, if there is one."""
        return next((name for name in self.patterns if not self.found(name)), None)


def read_grid(settings: Mapping[str, Any]) -> Grid:
    """Return the grid of settings that hold lists of paths, or patterns. Raises BadInputError if none does."""
    shared, patterns = dict(settings), {}
    for name in SWEPT:
        value = settings.get(name)
        if isinstance(value, list) or (isinstance(value, str) and is_pattern(value)):
            patterns[name] = _paths(name, shared.pop(name))
    shared[_ARGS] = dict(settings.get(_ARGS) or {})
    for name, value in (settings.get(_ARGS) or {}).items():
        if isinstance(value, str) and "*" in value:  # a list may be a value that the policy takes
            patterns[f"{_ARGS}.{name}"] = [shared[_ARGS].pop(name)]
    if not patterns:
        raise BadInputError(
            "nothing to sweep: give a path a pattern in quotes, such as --vlm_checkpoint 'RUN/*/vlm', or several paths"
        )
    return Grid(shared, patterns)


def natural(path: str) -> tuple[Any, ...]:
    """Return a key that sorts numbers in names by their value: step_200 before step_1000."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path))


def is_pattern(path: str) -> bool:
    """Return True for a path with wildcards, unless a file is called that."""
    return glob.has_magic(path) and not os.path.lexists(path)


def steps(paths: Sequence[str]) -> list[int | None]:
    """Return the training step of each path: the last number in the parts that not all paths share; None without."""
    parts = [PurePath(path).parts for path in paths]
    return [_step(own, parts) for own in parts]


def labels(paths: Sequence[str]) -> list[str]:
    """Return a short name for each path: the parts that not all paths share."""
    parts = [PurePath(path).parts for path in paths]
    return ["/".join(_distinct(own, parts)) for own in parts]


def _step(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> int | None:
    for part in reversed(_distinct(own, others)):
        numbers = re.findall(r"[0-9]+", part)
        if numbers:
            return int(numbers[-1][:18])
    return None


def _distinct(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the parts of a path that another path has otherwise; its last two if there are none."""
    differing = (
        part for place, part in enumerate(own) if any(place >= len(other) or other[place] != part for other in others)
    )
    return tuple(differing) or own[-2:]


def _paths(name: str, value: Any) -> list[str]:
    paths = value if isinstance(value, list) else [value]
    wrong = next((path for path in paths if not isinstance(path, str) or not path.strip()), None)
    if wrong is not None or not paths:
        raise BadInputError(f"{name}: must be paths or patterns, not {str(wrong)[:60]!r}")
    return paths
