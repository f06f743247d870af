"""The page's section about how closely plans were followed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from wpray.report.sections import section
from wpray.report.tracking import TrackingFacts, TrackingGroup
from wpray.types import FloatArray

_ABOUT = (
    "At the end of each segment: the robot against the waypoint that the segment aimed at, in episodes that succeeded "
    "and in those that failed. Normalized units are those of the policy's plans."
)
_DIMENSIONS = ("x", "y", "z", "rotation 1", "rotation 2", "rotation 3")
_ENDS = {
    "used_up": "all waypoints were followed",
    "zero_duration": "a waypoint has the duration 0",
    "segment_limit": "max_segments_per_replan was reached",
    "deviation": "the robot was too far from its waypoint",
    "step_budget": "the step limit was reached",
    "success": "the task was solved",
    "truncated": "the environment ended the episode",
}
_Statistic = Callable[[TrackingGroup], FloatArray]


def tracking_section(found: TrackingFacts) -> str:
    """Return the section; empty if nothing was recorded."""
    if found.empty:
        return ""
    groups = list(found.groups.values())
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *found.groups))
    tables = [_table(head, _error_rows(groups)), _table(head, _end_rows(groups)), _table(head, _time_rows(groups))]
    titles = ("Error at the end of a segment: median, and nine of ten are within", "Why plans ended", "Time")
    content = "".join(f"<h3>{title}</h3>{table}" for title, table in zip(titles, tables, strict=True))
    return section("Following the plan", _ABOUT, content, "tracking")


def _error_rows(groups: Sequence[TrackingGroup]) -> list[list[str]]:
    rows = [["segments", *(str(len(group.errors)) for group in groups)]]
    rows += [
        _spread(f"{axis}, mm", groups, lambda group, at=at: 1000 * np.abs(group.position[:, at]))  # type: ignore[misc]
        for at, axis in enumerate("xyz")
    ]
    rows += [
        _spread("position, mm", groups, lambda group: 1000 * np.linalg.norm(group.position, axis=1)),
        _spread("rotation, degrees", groups, lambda group: np.degrees(group.turn)),
        ["gripper as planned", *(_share(group.grips) for group in groups)],
    ]
    rows += [
        _spread(f"{name}, normalized", groups, lambda group, at=at: np.abs(group.errors[:, at]))  # type: ignore[misc]
        for at, name in enumerate(_DIMENSIONS)
    ]
    rows += [["distance, normalized: mean, deviation, largest", *(_moments(group.distance) for group in groups)]]
    return rows


def _end_rows(groups: Sequence[TrackingGroup]) -> list[list[str]]:
    totals = [sum(group.ends.values()) for group in groups]
    names = sorted({name for group in groups for name in group.ends}, key=lambda name: -groups[0].ends[name])
    rows = [
        [_ENDS.get(name, name), *(_of(group.ends[name], total) for group, total in zip(groups, totals, strict=True))]
        for name in names
    ]
    return [["plans", *map(str, totals)], *rows, ["waypoints skipped", *(str(group.skipped) for group in groups)]]


def _time_rows(groups: Sequence[TrackingGroup]) -> list[list[str]]:
    return [
        _spread("planner, ms a batch", groups, lambda group: 1000 * group.planner_s),
        _spread("action expert, ms a batch", groups, lambda group: 1000 * group.expert_s),
    ]


def _spread(name: str, groups: Sequence[TrackingGroup], of: _Statistic) -> list[str]:
    return [name, *(_median(of(group)) for group in groups)]


def _median(values: FloatArray) -> str:
    if not len(values):
        return "-"
    middle, most = np.median(values), np.quantile(values, 0.9)
    digits = 1 if most >= 1 or most == 0 else 1 - math.floor(math.log10(most))
    return f"{middle:.{digits}f}, {most:.{digits}f}"


def _moments(values: FloatArray) -> str:
    return f"{values.mean():.3f}, {values.std():.3f}, {values.max():.3f}" if len(values) else "-"


def _share(values: FloatArray) -> str:
    return f"{values.mean():.1%}" if len(values) else "-"


def _of(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "-"


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
