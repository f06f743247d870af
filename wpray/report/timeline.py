"""Timeline of a run's actors as SVG, with its meaning in a sentence."""

from __future__ import annotations

import itertools

import numpy as np

from wpray.report.activity import ACTIVITIES, Activity
from wpray.report.charts import WIDTH
from wpray.report.svg import drawing, shortened, tag, text, ticks, tip
from wpray.types import FloatArray

ACTIVITY_COLOURS = dict(
    zip(ACTIVITIES, ("#b9a6d6", "#4c78a8", "#f2a541", "#d1495b", "#5b2a86", "var(--empty)"), strict=True)
)
ACTIVITY_NAMES = {
    "reset": "loading and resetting scenes",
    "simulate": "simulating",
    "render": "rendering cameras",
    "wait": "waiting for the policy",
    "error": "in attempts that ended in an error",
    "idle": "idle",
}
_REMEDIES = {
    "reset": "Scenes are compiled once for each task and actor: more trials a task make it matter less.",
    "simulate": "The simulator sets the pace: more env actors (CPUs) make the run faster, a faster policy would not.",
    "render": "Rendering sets the pace: a GPU's EGL (env.renderer) renders about a hundred times faster than OSMesa.",
    "wait": "The policy sets the pace: more policy replicas, or larger batches, make the run faster.",
    "error": "The section on errors says what they were.",
    "idle": "Actors stood idle: there were more of them than work, or they started late.",
}
_LEFT, _RIGHT, _LANE, _MOST_LANES = 90.0, 60.0, 14.0, 64
_PLOT = WIDTH - _LEFT - _RIGHT
_LEAST_LABEL = 90.0  # px that a part of the total bar needs for its name


def bottleneck(activity: Activity) -> str:
    """Describe the activity that took most of the env actors' time, and what would help."""
    shares = activity.shares
    largest = max(shares, key=lambda name: shares[name])
    said = f"Env actors spent the largest part of their time ({shares[largest]:.0%}) {ACTIVITY_NAMES[largest]}."
    return f"{said} {_REMEDIES[largest]}"


def total_bar(activity: Activity) -> str:
    """Draw one bar of the env actors' time from start to end, by activity."""
    parts, x = [text(_LEFT - 8, 19, "in total", class_="small", text_anchor="end")], _LEFT
    for name, share in activity.shares.items():
        width = _PLOT * share
        said = tip(f"{ACTIVITY_NAMES[name]}: {share:.1%} of the env actors' time")
        parts.append(tag("rect", said, x=x, y=2, width=width, height=26, fill=ACTIVITY_COLOURS[name]))
        if width >= _LEAST_LABEL:
            dark = {"class_": "on-light"} if name in ("render", "reset") else {"class_": "on-dark"}
            label = text(x + width / 2, 19, f"{name} {share:.0%}", text_anchor="middle", pointer_events="none")
            parts.append(tag("g", label, **({} if name == "idle" else dark)))
        x += width
    return drawing(WIDTH, 32, parts, "What the env actors' time went to")


def shares_panel(activity: Activity) -> str:
    """Draw the share of env actors in each activity over time."""
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
        parts.append(
            tag("path", tip(ACTIVITY_NAMES[ACTIVITIES[index]]), d=path, fill=ACTIVITY_COLOURS[ACTIVITIES[index]])
        )
    return drawing(
        WIDTH, height + 22, [*parts, _time_axis(activity, height)], "What the env actors did, as shares over time"
    )


def lanes_panel(activity: Activity) -> str:
    """Draw a lane per env actor, coloured by its main activity in each bin."""
    workers = activity.workers[:_MOST_LANES]
    x, parts = _positions(activity.edges), []
    for lane, worker in enumerate(workers):
        y = 4 + lane * _LANE
        parts.append(text(_LEFT - 8, y + _LANE - 4, shortened(worker, 12), class_="small", text_anchor="end"))
        main = activity.seconds[lane].argmax(axis=0)
        bounds = [0, *(np.flatnonzero(np.diff(main)) + 1).tolist(), len(main)]
        for first, last in itertools.pairwise(bounds):
            name = ACTIVITIES[main[first]]
            said = tip(f"{worker}: {ACTIVITY_NAMES[name]}")
            parts.append(
                tag(
                    "rect",
                    said,
                    x=float(x[first]),
                    y=y,
                    width=float(x[last] - x[first]),
                    height=_LANE - 2,
                    fill=ACTIVITY_COLOURS[name],
                )
            )
    bottom = 4 + len(workers) * _LANE
    if len(activity.workers) > len(workers):
        parts.append(text(_LEFT - 8, bottom + 16, f"first {_MOST_LANES}", class_="small", text_anchor="end"))
    return drawing(WIDTH, bottom + 22, [*parts, _time_axis(activity, bottom)], "What each env actor did over time")


def policy_panel(activity: Activity) -> str:
    """Draw the number of policy replicas that compute, and the size of their batches."""
    height, top = 90.0, 12.0
    busy = activity.computing / np.diff(activity.edges)
    sizes = activity.batch_size
    x, most_busy, most_size = _positions(activity.edges), max(1.0, float(busy.max())), max(1.0, float(np.nanmax(sizes)))
    area = _steps(x, height - (height - top) * busy / most_busy, height)
    line = _line(x, height - (height - top) * sizes / most_size)
    right = _LEFT + _PLOT + 8
    parts = [
        tag("path", tip("replicas computing"), d=area, fill=ACTIVITY_COLOURS["wait"], opacity=0.55),
        tag("path", tip("mean batch size"), d=line, class_="batch"),
        text(_LEFT - 8, top + 4, f"{most_busy:.2g} busy", class_="small", text_anchor="end"),
        text(_LEFT - 8, height, "0", class_="small", text_anchor="end"),
        text(right, top + 4, f"batch {most_size:.2g}", class_="small"),
        text(right, height, "0", class_="small"),
    ]
    said = "Policy: replicas computing and batch sizes"
    return drawing(WIDTH, height + 22, [*parts, _time_axis(activity, height)], said)


def _positions(edges: FloatArray) -> FloatArray:
    return np.asarray(_LEFT + _PLOT * edges / edges[-1])


def _steps(x: FloatArray, y: FloatArray, base: float) -> str:
    """Return a filled staircase from `base` up to `y` in each bin."""
    return (
        f"M{x[0]:.1f} {base:.1f}"
        + "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(y, x[1:], strict=True))
        + f"V{base:.1f}Z"
    )


def _line(x: FloatArray, y: FloatArray) -> str:
    """Return a line with a level per bin, interrupted where it is NaN."""
    bins = zip(x, x[1:], y, strict=False)
    return "".join(f"M{left:.1f} {level:.1f}H{right:.1f}" for left, right, level in bins if level == level)


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
