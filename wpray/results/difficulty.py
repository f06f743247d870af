"""Success by difficulty, where a benchmark grades its tasks: a row an axis of perturbation, a column a level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wpray.results.statistics import Rate, stratified
from wpray.results.variations import variations_of
from wpray.types import TaskKey

INFO_KEY = "difficulty"  # entry of run.json
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Rates by axis (by suite where none is perturbed) and level; the last of several rows is over all of them."""

    columns: list[str]
    rows: dict[str, list[Rate]]  # a rate without trials: nothing of the kind was run


def facts_of(source: str, levels: Mapping[TaskKey, str]) -> dict[str, Any]:
    """Return the entry of run.json that holds levels, as `by_difficulty` reads it."""
    listed: dict[str, dict[str, list[int]]] = {}
    for (suite, task), level in levels.items():
        listed.setdefault(suite, {}).setdefault(level, []).append(task)
    return {INFO_KEY: {"source": source, "levels": listed}}


def by_difficulty(counts: Mapping[TaskKey, tuple[int, int]], infos: Sequence[Mapping[str, Any]]) -> Difficulty | None:
    """Arrange the (successes, episodes with an outcome) of tasks by the levels in the runs' run.json; None without."""
    levels = {key: level for info in infos for key, level in _levels(info.get(INFO_KEY))}
    axes = {suite: axis for info in infos for suite, (_, axis) in variations_of(info).items()}
    cells: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for key, its in counts.items():
        if (level := levels.get(key)) is not None:
            cells.setdefault(axes.get(key.suite, key.suite), {}).setdefault(level, []).append(its)
    if not cells:
        return None
    columns = sorted({level for row in cells.values() for level in row})
    if len(cells) > 1:
        cells[_ALL] = {level: [its for row in cells.values() for its in row.get(level, [])] for level in columns}
    rows = {name: [stratified(row.get(level, [])) for level in columns] for name, row in cells.items()}
    return Difficulty(columns, rows)


def source_of_levels(info: Mapping[str, Any]) -> str | None:
    """Return what a run.json says its levels are from; None if it has none."""
    return str(dict(_items(info.get(INFO_KEY))).get("source") or "") or None


def _levels(entry: Any) -> Iterable[tuple[TaskKey, str]]:
    """Yield the level of each task; what is damaged in run.json grades none."""
    for suite, levels in _items(dict(_items(entry)).get("levels")):
        for level, tasks in _items(levels):
            if isinstance(tasks, list):
                yield from ((TaskKey(suite, task), level) for task in tasks if isinstance(task, int))


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()
