"""The timeline of a run's actors as SVG, and what it means in a sentence."""

from __future__ import annotations

import itertools

import numpy as np

from wpray.report.activity import ACTIVITIES, Activity
from wpray.report.charts import WIDTH
from wpray.report.svg import drawing, shortened, tag, text, ticks, tip
from wpray.types import FloatArray

COLOURS = dict(zip(ACTIVITIES, ("#9c89b8", "#4c78a8", "#f2a541", "#d1495b", "#5e4b8b", "#eceff1"), strict=True))
NAMES = {
    "reset": "loading and resetting scenes",
    "simulate": "simulating",
    "render": "rendering cameras",
    "wait": "waiting for the policy",
    "error": "attempts that ended in an error",
    "idle": "idle",
}
_REMEDIES = {
    "reset": "Scenes are compiled once for each task and actor: more trials a task make it matter less.",
    "simulate": "The simulator sets the pace: more env actors (CPUs) make the run faster, a faster policy would not.",
    "render": "Rendering sets the pace: a GPU's EGL (env.renderer) renders about a hundred times faster than OSMesa.",
    "wait": "The policy sets the pace: more policy replicas, or larger batches, make the run faster.",
    "error": "Errors took the largest part: see below what they were.",
    "idle": "Actors stood idle: there were more of them than work, or they started late.",
}
_LEFT, _LANE, _MOST_LANES = 90.0, 14.0, 64
_PLOT = WIDTH - _LEFT - 10


def bottleneck(activity: Activity) -> str:
    """Which activity took the largest part of the env actors' time, and what would help."""
    shares = activity.shares
    largest = max(shares, key=lambda name: shares[name])
    said = f"Env actors spent the largest part of their time ({shares[largest]:.0%}) {NAMES[largest]}."
    return f"{said} {_REMEDIES[largest]}"


def shares_panel(activity: Activity) -> str:
    """All env actors together: which share did what."""
    height = 110.0
    totals = activity.seconds.sum(axis=0)
    shares = totals / np.maximum(totals.sum(axis=0), 1e-12)
    tops = np.cumsum(shares, axis=0)
    parts = [
        text(_LEFT - 8, 14, "100%", class_="small", text_anchor="end"),
        text(_LEFT - 8, height, "0%", class_="small", text_anchor="end"),
    ]
    x = _positions(activity.edges)
    for index in range(len(ACTIVITIES) - 1, -1, -1):
        path = _steps(x, height - (height - 8) * tops[index], height)
        parts.append(tag("path", tip(NAMES[ACTIVITIES[index]]), d=path, fill=COLOURS[ACTIVITIES[index]]))
    return drawing(
        WIDTH, height + 22, [*parts, _time_axis(activity, height)], "What the env actors did, as shares over time"
    )


def lanes_panel(activity: Activity) -> str:
    """A lane for each env actor, coloured by what it did most in each moment."""
    workers = activity.workers[:_MOST_LANES]
    x, parts = _positions(activity.edges), []
    for lane, worker in enumerate(workers):
        y = 4 + lane * _LANE
        parts.append(text(_LEFT - 8, y + _LANE - 4, shortened(worker, 12), class_="small", text_anchor="end"))
        main = activity.seconds[lane].argmax(axis=0)
        bounds = [0, *(np.flatnonzero(np.diff(main)) + 1).tolist(), len(main)]
        for first, last in itertools.pairwise(bounds):
            name = ACTIVITIES[main[first]]
            said = tip(f"{worker}: {NAMES[name]}")
            parts.append(
                tag(
                    "rect",
                    said,
                    x=float(x[first]),
                    y=y,
                    width=float(x[last] - x[first]),
                    height=_LANE - 2,
                    fill=COLOURS[name],
                )
            )
    bottom = 4 + len(workers) * _LANE
    return drawing(WIDTH, bottom + 22, [*parts, _time_axis(activity, bottom)], "What each env actor did over time")


def policy_panel(activity: Activity) -> str:
    """Policy replicas that were computing, and the size of their batches."""
    height = 90.0
    busy = activity.computing / np.diff(activity.edges)
    sizes = np.nan_to_num(activity.batch_size)
    x, parts = _positions(activity.edges), []
    most_busy, most_size = max(1.0, float(busy.max())), max(1.0, float(sizes.max()))
    parts.append(
        tag(
            "path",
            tip("replicas computing"),
            d=_steps(x, height - (height - 12) * busy / most_busy, height),
            fill="#d1495b",
            opacity=0.55,
        )
    )
    line = height - (height - 12) * sizes / most_size
    parts.append(tag("path", tip("mean batch size"), d=_line(x, line), class_="batch"))
    parts.append(text(_LEFT - 8, 16, f"{most_busy:.2g} busy", class_="small", text_anchor="end", fill="#d1495b"))
    parts.append(text(_LEFT - 8, 30, f"batch {most_size:.2g}", class_="small", text_anchor="end"))
    parts.append(text(_LEFT - 8, height, "0", class_="small", text_anchor="end"))
    return drawing(
        WIDTH, height + 22, [*parts, _time_axis(activity, height)], "Policy: replicas computing and batch sizes"
    )


def _positions(edges: FloatArray) -> FloatArray:
    return np.asarray(_LEFT + _PLOT * edges / edges[-1])


def _steps(x: FloatArray, y: FloatArray, base: float) -> str:
    """A filled staircase from `base` up to `y` in each bin."""
    return (
        f"M{x[0]:.1f} {base:.1f}"
        + "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(y, x[1:], strict=True))
        + f"V{base:.1f}Z"
    )


def _line(x: FloatArray, y: FloatArray) -> str:
    return f"M{x[0]:.1f} {y[0]:.1f}" + "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(y, x[1:], strict=True))


def _time_axis(activity: Activity, bottom: float) -> str:
    length = float(activity.edges[-1])
    unit, divisor = ("h", 3600.0) if length > 7200 else ("min", 60.0) if length > 180 else ("s", 1.0)
    parts = []
    for value in ticks(0, length / divisor, 11):
        x = _LEFT + _PLOT * value * divisor / length
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(text(x, bottom + 16, f"{value:g} {unit}", class_="small", text_anchor="middle"))
    for cut in activity.cuts:
        x = _LEFT + _PLOT * cut / length
        parts.append(tag("line", tip("the run was resumed here"), x1=x, x2=x, y1=0, y2=bottom, class_="cut"))
    return "".join(parts)
