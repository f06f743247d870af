"""Errors at the end of segments, reasons why plans ended, and the time that both took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wpray.results.reader import Run
from wpray.types import FloatArray

_COLUMNS = ("tracking_error", "planned_pose", "reached_pose", "planned_open", "reached_open")
_PLAN_COLUMNS = ("plan_end", "skipped_waypoints", "planner_s")
_POSE_DIM = 6


@dataclass(frozen=True, slots=True)
class TrackingGroup:
    """Segments and plans of some episodes."""

    errors: FloatArray  # (N, 6) reached minus planned position and rotation, normalized
    position: FloatArray  # (N, 3) the same of the position, m
    turn: FloatArray  # (N,) angle between planned and reached rotation, rad
    grips: FloatArray  # (N,) 1.0 where the gripper was open or closed as planned, else 0.0
    ends: Counter[str] = field(default_factory=Counter)  # why plans ended
    skipped: int = 0  # waypoints
    planner_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    expert_s: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def distance(self) -> FloatArray:
        """Return (N,) the Euclidean errors over position and rotation, normalized."""
        distance: FloatArray = np.linalg.norm(self.errors, axis=1)
        return distance


@dataclass(frozen=True, slots=True)
class TrackingFacts:
    """All episodes, those that succeeded and those that failed."""

    groups: Mapping[str, TrackingGroup]

    @property
    def empty(self) -> bool:
        """Return whether nothing was recorded, as for policies without waypoints and in older runs."""
        whole = self.groups["all"]
        return not len(whole.errors) and not whole.ends


def collect(run: Run) -> TrackingFacts:
    """Collect what `run` has recorded of its segments and plans; rows that are not whole are left out."""
    key = ("suite", "task_id", "trial")
    outcomes = {
        tuple(row[name] for name in key): row["success"] for row in run.episodes.select([*key, "success"]).to_pylist()
    }
    columns = [*key, "kind", "expert_s", *_COLUMNS, *_PLAN_COLUMNS]
    rows = [(outcomes.get(tuple(row[name] for name in key)), row) for row in run.decisions.select(columns).to_pylist()]
    wanted: dict[str, Callable[[bool | None], bool]] = {
        "all": lambda _: True,
        "successes": lambda success: success is True,
        "failures": lambda success: success is False,
    }
    return TrackingFacts(
        {name: _following([row for success, row in rows if fits(success)]) for name, fits in wanted.items()}
    )


def _following(rows: Sequence[Mapping[str, Any]]) -> TrackingGroup:
    whole = [row for row in rows if _is_whole(row)]
    planned, reached = (np.array([row[name] for row in whole]).reshape(-1, _POSE_DIM) for name in _COLUMNS[1:3])
    plans = [row for row in rows if row["kind"] == "plan"]
    return TrackingGroup(
        errors=np.array([row["tracking_error"][:_POSE_DIM] for row in whole]).reshape(-1, _POSE_DIM),
        position=(reached - planned)[:, :3],
        turn=angles(planned[:, 3:], reached[:, 3:]),
        grips=np.array([float(row["planned_open"] == row["reached_open"]) for row in whole]),
        ends=Counter(row["plan_end"] for row in plans if row["plan_end"] is not None),
        skipped=sum(row["skipped_waypoints"] or 0 for row in plans),
        planner_s=np.array([row["planner_s"] for row in plans if row["planner_s"] is not None]),
        expert_s=np.array([row["expert_s"] for row in rows if row["expert_s"] is not None]),
    )


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Return whether a segment has every value that is compared, all of them finite."""
    if any(row[name] is None for name in _COLUMNS) or len(row["tracking_error"]) < _POSE_DIM:
        return False
    lists = (row["tracking_error"][:_POSE_DIM], row["planned_pose"], row["reached_pose"])
    return all(value is not None and abs(value) < 1e6 for values in lists for value in values)


def angles(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return (N,) the angles, rad, between rotations (N, 3) given as axis-angle: from 0 to pi."""
    cosines = np.abs((_quaternions(a) * _quaternions(b)).sum(axis=1))
    angles: FloatArray = 2 * np.arccos(np.clip(cosines, 0, 1))
    return angles


def _quaternions(turns: FloatArray) -> FloatArray:
    size = np.linalg.norm(turns, axis=1, keepdims=True)
    axis = turns / np.maximum(size, 1e-12)
    quaternions: FloatArray = np.concatenate([np.cos(size / 2), axis * np.sin(size / 2)], axis=1)
    return quaternions
