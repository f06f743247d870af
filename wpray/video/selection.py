"""Selection of the episodes that get a video: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from wpray.types import EpisodeRow, TrialKey

Mode = Literal["none", "failures", "sample", "all"]


def select_episodes(rows: Sequence[EpisodeRow], mode: Mode, max_count: int | None) -> list[EpisodeRow]:
    """Return the rows to render in (suite, task, trial) order, without episodes that ended in an error.

    `sample` keeps each task's first success and first failure. If `max_count` leaves some out, it keeps failures before
    successes, and every task's first one before any task's second.
    """
    shown = sorted((row for row in rows if row["status"] != "error"), key=TrialKey.from_row)
    chosen = _by_mode(shown, mode)
    if max_count is None or len(chosen) <= max_count:
        return chosen
    return sorted(_by_importance(chosen)[:max_count], key=TrialKey.from_row)


def _by_mode(shown: list[EpisodeRow], mode: Mode) -> list[EpisodeRow]:
    if mode == "sample":
        return _firsts(shown)
    if mode == "failures":
        return [row for row in shown if row["status"] == "failure"]
    return shown if mode == "all" else []


def _firsts(rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
    seen: dict[tuple[str, int, str], EpisodeRow] = {}
    for row in rows:
        seen.setdefault((row["suite"], row["task_id"], row["status"]), row)
    return sorted(seen.values(), key=TrialKey.from_row)


def _by_importance(rows: Sequence[EpisodeRow]) -> list[EpisodeRow]:
    ranks: list[tuple[bool, int, int, str]] = []
    counts: dict[tuple[str, int, str], int] = {}
    for row in rows:
        group = (row["suite"], row["task_id"], row["status"])
        counts[group] = counts.get(group, 0) + 1
        ranks.append((row["status"] != "failure", counts[group], row["task_id"], row["suite"]))
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: ranks[index])]
