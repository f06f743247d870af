"""Distances between planned and reached waypoints, and durations of their segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from wpray.results.reader import Run, matrix
from wpray.types import FloatArray

_MOST_EPISODES = 2500  # at most, because reading one costs some milliseconds


@dataclass(frozen=True, slots=True)
class Segments:
    """Executed segments; one entry per segment."""

    durations: FloatArray  # control steps planned, of all segments
    misses: FloatArray  # m between planned and reached position, for segments that ran to their end
    waypoints: FloatArray  # index of the waypoint in its plan, for each miss
    episodes: int  # number of episodes that these come from
    units_known: bool  # whether run.json states the units of waypoints


def collect(run: Run) -> Segments:
    """Collect the segments of `run`. Without trajectories or units there are no misses, which is no error."""
    rows = run.decisions.select(
        ["task_id", "trial", "suite", "kind", "step", "plan_index", "waypoints", "waypoint_index", "duration"]
    )
    episodes = _by_episode(rows.to_pylist())
    durations = [row["duration"] for rows in episodes.values() for row in rows if row["kind"] == "segment"]
    space = run.info.get("waypoint_space")
    found = list(_misses(run, episodes, space)) if space else []
    misses = np.array([miss for miss, _, _ in found])
    indices = np.array([index for _, index, _ in found])
    return Segments(np.array(durations, float), misses, indices, len({key for _, _, key in found}), bool(space))


def _by_episode(rows: list[dict[str, Any]]) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["suite"], row["task_id"], row["trial"]), []).append(row)
    return groups


def _misses(
    run: Run, episodes: Mapping[tuple[str, int, int], list[dict[str, Any]]], space: Mapping[str, list[float]]
) -> Iterator[tuple[float, int, tuple[str, int, int]]]:
    scale, offset = np.array(space["scale"][:3]), np.array(space["offset"][:3])
    keys = list(episodes)
    for key in keys[:: max(1, -(-len(keys) // _MOST_EPISODES))]:
        path = run.trajectory_file(key)
        if path is None:
            continue
        reached = matrix(pq.read_table(path, columns=["eef_pos"]), "eef_pos")
        plans = {row["plan_index"]: row["waypoints"] for row in episodes[key] if row["kind"] == "plan"}
        for row in episodes[key]:
            end = row["step"] + (row["duration"] or 0)
            if row["kind"] == "segment" and row["plan_index"] in plans and end <= len(reached):
                planned = np.array(plans[row["plan_index"]][row["waypoint_index"]][:3]) * scale + offset
                yield float(np.linalg.norm(planned - reached[end - 1])), row["waypoint_index"], key
