"""Distances between planned and reached waypoints, and durations of their segments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wpray.errors import BadInputError
from wpray.results.reader import Run, matrix
from wpray.types import FloatArray, TrialKey

_MOST_EPISODES = 2500  # at most, because reading one costs some milliseconds


@dataclass(frozen=True, slots=True)
class Segments:
    """Executed segments; one entry per segment."""

    durations: FloatArray  # control steps planned, of all segments
    misses: FloatArray  # m between planned and reached position, for segments that ran to their end
    waypoints: FloatArray  # index of the waypoint in its plan, for each miss
    episodes: int  # number of episodes that these come from
    units_known: bool  # whether run.json states the units of waypoints
    notes: tuple[str, ...] = ()  # lines about what could not be read


def collect(run: Run) -> Segments:
    """Collect the segments of `run`. Without trajectories or units there are no misses; notes say what is damaged."""
    named = ("kind", "step", "latency_steps", "plan_index", "waypoints", "waypoint_index", "duration")
    rows = run.decisions.select(["task_id", "trial", "suite", *named])
    episodes = _by_episode(rows.to_pylist())
    segments = [row for rows in episodes.values() for row in rows if row["kind"] == "segment"]
    durations = [row["duration"] for row in segments if row["duration"] is not None]
    space = run.info.get("waypoint_space")
    damaged: list[str] = []
    has_positions = any(column.name == "eef_pos" for column in run.state_columns)
    found = list(_misses(run, episodes, space, damaged)) if space and has_positions else []
    misses = np.array([miss for miss, _, _ in found])
    indices = np.array([index for _, index, _ in found])
    notes = (f"{len(damaged)} trajectories are left out of the waypoints: {damaged[0]}",) if damaged else ()
    read = len({key for _, _, key in found})
    return Segments(np.array(durations, float), misses, indices, read, bool(space), notes)


def _by_episode(rows: list[dict[str, Any]]) -> dict[TrialKey, list[dict[str, Any]]]:
    groups: dict[TrialKey, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(TrialKey.from_row(row), []).append(row)
    return groups


def _misses(
    run: Run,
    episodes: Mapping[TrialKey, list[dict[str, Any]]],
    space: Mapping[str, list[float]],
    damaged: list[str],
) -> Iterator[tuple[float, int, TrialKey]]:
    scale, offset = np.array(space["scale"][:3]), np.array(space["offset"][:3])
    keys = list(episodes)
    for key in keys[:: max(1, -(-len(keys) // _MOST_EPISODES))]:
        if run.trajectory_file(key) is None:
            continue
        try:
            reached = matrix(run.trajectory(key, ["eef_pos"]), "eef_pos")
        except BadInputError as error:
            damaged.append(str(error))
            continue
        plans = {row["plan_index"]: row["waypoints"] for row in episodes[key] if row["kind"] == "plan"}
        for row in episodes[key]:
            planned = _aim(row, plans)
            end = row["step"] + (row["latency_steps"] or 0) + (row["duration"] or 0)
            if planned is not None and 0 < end <= len(reached):
                miss = float(np.linalg.norm(planned * scale + offset - reached[end - 1]))
                if math.isfinite(miss):
                    yield miss, row["waypoint_index"], key


def _aim(row: Mapping[str, Any], plans: Mapping[int, list[list[float]] | None]) -> FloatArray | None:
    """Return the position (3,) that a segment aims at, in the waypoints' units; None if its plan lacks it."""
    plan, index = plans.get(row["plan_index"]), row["waypoint_index"]
    if row["kind"] != "segment" or plan is None or index is None or not 0 <= index < len(plan):
        return None
    aim = plan[index]
    return np.array(aim[:3], float) if aim is not None and len(aim) >= 3 else None
