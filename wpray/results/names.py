"""Safe file names of a run folder, which sort in the order of their trials."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_SAFE = re.compile(r"[^A-Za-z0-9_.-]+")
PartKey = tuple[str, int, int]  # a TrialKey whose suite is a safe name


@lru_cache(maxsize=256)
def safe_name(text: str) -> str:
    """Return `text` as a file name that cannot leave its folder."""
    return _SAFE.sub("_", text).lstrip(".")[:150] or "_"


def part_key(key: tuple[str, int, int]) -> PartKey:
    """Return the key that a trial's part is named after."""
    return safe_name(key[0]), key[1], key[2]


def part_name(key: tuple[str, int, int]) -> str:
    """Return `SUITE/TASK_TRIAL.parquet`."""
    return f"{safe_name(key[0])}/{key[1]:03d}_{key[2]:05d}.parquet"


def part_key_of_path(path: Path) -> PartKey:
    """Return the key of `.../SUITE/TASK_TRIAL.parquet`. Raise ValueError if it is not a part's name."""
    task, _, trial = path.stem.partition("_")
    if not (task.isdecimal() and trial.isdecimal()):
        raise ValueError(f"{path.name} is no name of a part")
    return path.parent.name, int(task), int(trial)
