"""Activity of every env actor and of the policy over time: seconds per time bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wpray.results.reader import Run
from wpray.types import EpisodeRow, FloatArray, TrialKey

ACTIVITIES = ("reset", "simulate", "render", "wait", "error", "idle")
_GAP_S = 60.0  # a longer pause without any activity is cut out, because the run was resumed after it


@dataclass(frozen=True, slots=True)
class Activity:
    """Seconds spent on each activity. Times are seconds since the start, with pauses cut out."""

    edges: FloatArray  # (B + 1,) of the time bins
    workers: list[str]  # W
    seconds: FloatArray  # (W, len(ACTIVITIES), B)
    computing: FloatArray  # (B,) seconds that policy replicas computed, summed over replicas
    batch_size: FloatArray  # (B,) mean size of the batches begun in a bin; NaN if there are none
    cuts: list[float]  # times at which a pause was cut out

    @property
    def shares(self) -> dict[str, float]:
        """Return each activity's share of all env actors' time."""
        sums = self.seconds.sum(axis=(0, 2))
        return dict(zip(ACTIVITIES, sums / max(float(sums.sum()), 1e-9), strict=True))


def collect(run: Run, rows: Sequence[EpisodeRow], bins: int) -> Activity:
    """Compute the activity from the episodes' start times and the decisions' waits."""
    clock = _Clock([(row["started_at"].timestamp(), _end(row)) for row in rows])
    starts = clock(np.array([row["started_at"].timestamp() for row in rows]))
    edges = np.linspace(0.0, max(clock.length, 1e-3), bins + 1)
    names = [row["worker"] or "unknown" for row in rows]
    workers = sorted(set(names), key=lambda name: (len(name), name))
    number = {name: index for index, name in enumerate(workers)}
    waits = _Waits.read(run, rows, starts, np.array([number[name] for name in names]))
    seconds = np.zeros((len(workers), len(ACTIVITIES), bins))
    for worker in range(len(workers)):
        mine = [index for index, name in enumerate(names) if number[name] == worker]
        seconds[worker] = _of_worker(worker, [rows[index] for index in mine], starts[mine], waits, edges)
    return Activity(edges, workers, seconds, waits.computing(edges), waits.batch_sizes(edges), clock.cuts)


def covered(starts: FloatArray, ends: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the seconds (B,) of each bin that intervals cover; overlaps count as often as they occur."""
    return np.diff(_area(starts, edges) - _area(ends, edges))


def _area(points: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the sum of max(0, edge - point) over the points, at every edge."""
    points = np.sort(points)
    counts = np.searchsorted(points, edges)
    sums = np.concatenate([[0.0], np.cumsum(points)])
    return np.asarray(edges * counts - sums[counts])


def _of_worker(
    worker: int, rows: Sequence[EpisodeRow], starts: FloatArray, waits: _Waits, edges: FloatArray
) -> FloatArray:
    column = {name: np.array([row[name] for row in rows]) for name in ("reset_s", "wall_s")}
    errors = np.array([row["status"] == "error" for row in rows])
    lost = np.array([_end(row) - row["started_at"].timestamp() for row in rows])
    mine = waits.worker == worker
    asked = waits.asked[mine]
    reset = covered(starts, starts + column["reset_s"], edges)
    render = covered(asked - waits.render[mine], asked, edges)
    wait = covered(asked, asked + waits.wait[mine], edges)
    whole = covered(starts, starts + column["wall_s"], edges)
    error = covered(starts[errors], (starts + lost)[errors], edges)
    simulate = np.maximum(whole - reset - render - wait, 0.0)
    idle = np.maximum(np.diff(edges) - reset - simulate - render - wait - error, 0.0)
    return np.stack([reset, simulate, render, wait, error, idle])


@dataclass(frozen=True, slots=True)
class _Waits:
    """Decisions for which an episode waited; one entry per decision."""

    worker: FloatArray
    asked: FloatArray  # request time, on the clock without pauses
    wait: FloatArray  # s
    render: FloatArray  # s before the request
    compute: FloatArray  # s, of the batch
    batch: FloatArray

    @classmethod
    def read(cls, run: Run, rows: Sequence[EpisodeRow], starts: FloatArray, workers: FloatArray) -> _Waits:
        index = {TrialKey.from_row(row): position for position, row in enumerate(rows)}
        names = ("suite", "task_id", "trial", "asked_s", "wait_s", "compute_s", "batch_size")
        columns = {name: run.decisions[name].to_pylist() for name in names}
        keys = zip(*(columns[name] for name in names[:3]), strict=True)
        episode = np.array([index[TrialKey(*key)] for key in keys], dtype=int)
        data: Mapping[str, FloatArray] = {name: np.array(columns[name], dtype=float) for name in names[3:]}
        real = data["wait_s"] > 0  # a plan's first segment comes with the plan
        episode = episode[real]
        asked_often = np.bincount(episode, minlength=len(rows))
        render = np.array([row["render_s"] for row in rows]) / np.maximum(asked_often, 1)
        return cls(
            workers[episode],
            starts[episode] + data["asked_s"][real],
            data["wait_s"][real],
            render[episode],
            data["compute_s"][real],
            data["batch_size"][real],
        )

    def computing(self, edges: FloatArray) -> FloatArray:
        """Return the seconds (B,) of policy computation in each bin.

        Each request counts for its share of the batch's time, which ends when the reply arrives.
        """
        share = self.compute / self.batch
        ends = self.asked + self.wait
        return covered(ends - share, ends, edges)

    def batch_sizes(self, edges: FloatArray) -> FloatArray:
        """Return the mean batch size (B,) in each bin, over batches rather than requests."""
        batches, _ = np.histogram(self.asked, edges, weights=1 / self.batch)
        requests, _ = np.histogram(self.asked, edges)
        with np.errstate(invalid="ignore"):
            return np.asarray(requests / batches)


class _Clock:
    """Conversion of Unix seconds into seconds since the first start, with pauses cut out."""

    def __init__(self, intervals: Sequence[tuple[float, float]]) -> None:
        ordered = sorted(intervals)
        begin, end = ordered[0][0], ordered[0][1]
        resumed, removed, self.cuts = [begin], [begin], []
        for start, stop in ordered:
            if start > end + _GAP_S:
                removed.append(removed[-1] + start - end)
                resumed.append(start)
                self.cuts.append(end - removed[-2])
            end = max(end, stop)
        self._resumed, self._removed = np.array(resumed), np.array(removed)
        self.length = end - removed[-1]

    def __call__(self, instants: FloatArray) -> FloatArray:
        session = np.searchsorted(self._resumed, instants, side="right") - 1
        return np.asarray(instants - self._removed[session])


def _end(row: EpisodeRow) -> float:
    started: float = row["started_at"].timestamp()
    if row["status"] == "error":
        return max(started, float(row["ended_at"].timestamp()))
    return started + float(row["wall_s"])
