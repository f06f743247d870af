"""Pace of a run, from its table of episodes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def span_s(episodes: pa.Table) -> float:
    """Return the seconds from the first episode's start to the last one's end."""
    starts, ends = (episodes[name].to_pylist() for name in ("started_at", "ended_at"))
    return float((max(ends) - min(starts)).total_seconds())


def steady_per_min(episodes: pa.Table) -> float | None:
    """Return the episodes a minute while every environment has work; None for a run that is too short to tell.

    It counts from the end of every worker's first episode, of those workers that were there for the first half, until
    the last episode starts.
    """
    rows = episodes.select(["worker", "started_at", "ended_at"]).to_pylist()
    ends = sorted(row["ended_at"] for row in rows)
    if not ends:
        return None
    firsts: dict[str, Any] = {}
    for row in rows:
        firsts[row["worker"]] = min(row["ended_at"], firsts.get(row["worker"], row["ended_at"]))
    began = max(end for end in firsts.values() if end <= ends[len(ends) // 2])
    ended = max(row["started_at"] for row in rows)
    count = sum(began < end <= ended for end in ends)
    return 60 * count / (ended - began).total_seconds() if count >= len(firsts) and ended > began else None
