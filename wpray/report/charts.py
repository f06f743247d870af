"""Charts of outcomes and waypoints as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpray.report.facts import RunFacts, TaskFacts
from wpray.report.svg import drawing, shortened, tag, text, ticks, tip
from wpray.types import EpisodeRow, TrialKey

WIDTH = 1040.0
OUTCOME_COLOURS = {"success": "#1b9e77", "failure": "#d95f02", "error": "#5b2a86", "missing": "var(--empty)"}
_LABEL = 330.0  # width of the task labels, px
_RIGHT = 150.0  # px for the numbers
_ROW, _ROW_OF_MANY, _MANY = 25.0, 19.0, 30  # px per task; smaller if there are more than _MANY
_CHARACTERS = 46


def task_bars(facts: RunFacts) -> str:
    """Draw the success rate of every task with its interval, and the overall rate as a line."""
    plot = WIDTH - _LABEL - _RIGHT
    row = _ROW if len(facts.tasks) <= _MANY else _ROW_OF_MANY
    bottom = row * len(facts.tasks) + 8
    parts = [_rate_axis(plot, bottom)]
    for index, task in enumerate(facts.tasks):
        parts.append(tag("g", _task_bar(task, plot, row), transform=f"translate({_LABEL:.0f},{8 + index * row:.0f})"))
    if facts.overall.trials and len(facts.tasks) > 1:
        x = _LABEL + plot * facts.overall.rate
        line = tag("line", tip(f"overall {facts.overall.rate:.1%}"), x1=x, x2=x, y1=2, y2=bottom, class_="overall")
        parts += [
            line,
            text(
                x,
                bottom + 32,
                f"overall {facts.overall.rate:.1%}",
                class_="small",
                text_anchor="end" if facts.overall.rate > 0.9 else "middle",
            ),
        ]
    return drawing(WIDTH, bottom + 38, parts, "Success rate of each task with its 95% interval")


def _task_bar(task: TaskFacts, plot: float, row: float) -> str:
    rate, middle = task.rate, row / 2
    said = tip(_task_tip(task))
    label = text(-10, middle + 4, _named(task), text_anchor="end")
    if not rate.trials:
        return tag("g", said + label + text(6, middle + 4, f"no outcome, {task.errors} errors", class_="small"))
    parts = [
        tag("rect", x=0, y=4, width=plot, height=row - 8, fill=OUTCOME_COLOURS["missing"], rx=2),
        tag(
            "rect",
            x=0,
            y=4,
            width=plot * rate.rate,
            height=row - 8,
            fill=OUTCOME_COLOURS["success"],
            opacity=0.75,
            rx=2,
        ),
        tag("path", d=_whisker(plot * rate.low, plot * rate.high, middle), class_="whisker"),
        text(plot + 12, middle + 4, f"{rate.rate:.1%}", class_="number"),
        text(
            plot + 72,
            middle + 4,
            f"{rate.successes}/{rate.trials}" + (f"  +{task.errors} err" if task.errors else ""),
            class_="small",
        ),
    ]
    return tag("g", said + label + "".join(parts))


def _named(task: TaskFacts) -> str:
    """Return the task's id, with its suite if there are several, and its instruction, in the width of a label."""
    if task.label == str(task.task_id):
        return f"{task.task_id}  {shortened(task.instruction, _CHARACTERS)}"
    return shortened(f"{task.label}  {task.instruction}", _CHARACTERS + 3)


def _task_tip(task: TaskFacts) -> str:
    rate = task.rate
    steps = "" if task.mean_steps is None else f", {task.mean_steps:.0f} steps to success on average"
    return (
        f"Task {task.label}: {task.instruction}\n{rate.successes} of {rate.trials} succeeded, "
        f"95% interval {rate.low:.1%} to {rate.high:.1%}{steps}, {task.errors} errors"
    )


def _whisker(low: float, high: float, y: float) -> str:
    return f"M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"


def _rate_axis(plot: float, bottom: float) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _LABEL + plot * share
        parts.append(tag("line", x1=x, x2=x, y1=4, y2=bottom + 4, class_="grid"))
        parts.append(text(x, bottom + 18, f"{share:.0%}", class_="small", text_anchor="middle"))
    return "".join(parts)


def heat_map(facts: RunFacts, links: dict[TrialKey, str]) -> str:
    """Draw every episode as a cell, task by trial; `links` lead to videos."""
    trials = 1 + max(row["trial"] for row in facts.rows)
    cell = min(26.0, (WIDTH - _LABEL - 20) / trials)
    height = min(_ROW, max(cell, 15.0))
    parts = [
        text(_LABEL + (trial + 0.5) * cell, 12, str(trial), class_="small", text_anchor="middle")
        for trial in range(0, trials, max(1, round(28 / cell)))
    ]
    for index, task in enumerate(facts.tasks):
        y = 18 + index * height
        parts.append(
            text(
                _LABEL - 10,
                y + height / 2 + 4,
                _named(task),
                text_anchor="end",
            )
        )
        parts.append(
            tag("rect", x=_LABEL, y=y + 1, width=cell * trials - 1, height=height - 2, fill=OUTCOME_COLOURS["missing"])
        )
        parts += [_cell(row, _LABEL + row["trial"] * cell, y + 1, cell - 1, height - 2, links) for row in task.rows]
    return drawing(WIDTH, 24 + len(facts.tasks) * height, parts, "Outcome of every episode, by task and trial")


def _cell(row: EpisodeRow, x: float, y: float, width: float, height: float, links: dict[TrialKey, str]) -> str:
    link = links.get(TrialKey.from_row(row))
    detail = row["error_type"] if row["status"] == "error" else f"in {row['num_steps']} steps"
    said = tip(
        f"task {row['task_id']} trial {row['trial']}: {row['status']} {detail}" + (" (click: video)" if link else "")
    )
    rect = tag("rect", said, x=x, y=y, width=max(width, 1.0), height=height, fill=OUTCOME_COLOURS[row["status"]])
    if link is None:
        return rect
    mark = tag(
        "path",
        d=f"M{x + width / 2 - 2.5:.1f} {y + height / 2 - 3.5:.1f}l6 3.5l-6 3.5z",
        fill="#fff",
        pointer_events="none",
    )
    return tag("a", rect + mark, href=link)


def histogram(
    values: Sequence[float], unit: str, label: str, bins: int = 30, colour: str = OUTCOME_COLOURS["success"]
) -> str:
    """Draw a histogram with its median. The last bar includes outliers beyond the 99.5th percentile."""
    data = np.asarray(values, dtype=float)
    width, height, left, bottom = WIDTH / 2 - 20, 190.0, 40.0, 150.0
    edges = _edges(data, bins)
    counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), edges)
    plot, top = width - left - 16, float(counts.max())
    step = plot / len(counts)
    parts = [_count_axis(left, plot, bottom, top)]
    for index, count in enumerate(counts):
        bar = bottom * 0.9 * count / top
        said = tip(f"{edges[index]:.4g} to {edges[index + 1]:.4g} {unit}: {count}")
        parts.append(
            tag(
                "rect",
                said,
                x=left + index * step,
                y=bottom - bar,
                width=max(step - 1, 0.5),
                height=float(bar),
                fill=colour,
            )
        )
    parts += [_value_label(value, left, plot, bottom, edges) for value in ticks(edges[0], edges[-1], 9)]
    middle = float(np.median(data))
    x = left + plot * (middle - edges[0]) / (edges[-1] - edges[0])
    parts.append(tag("line", x1=x, x2=x, y1=4, y2=bottom, class_="overall"))
    parts.append(
        text(
            x + (5 if x < width / 2 else -5),
            12,
            f"median {middle:.4g} {unit}",
            class_="small",
            text_anchor="start" if x < width / 2 else "end",
        )
    )
    parts.append(text(left + plot / 2, height - 2, f"{label} ({unit})", class_="small", text_anchor="middle"))
    return drawing(width, height, parts, f"Histogram: {label}")


def _edges(data: np.ndarray, bins: int) -> np.ndarray:
    low, high = float(data.min()), float(np.quantile(data, 0.995))
    if np.all(data == np.round(data)):  # integers need bars of integer width, so that rounding leaves none empty
        width = max(1, round((high - low + 1) / bins))
        return np.arange(low, max(high, low + 5) + 1 + width, width) - 0.5
    return np.linspace(0.0, max(high, 1e-9) * 1.02, bins + 1)


def _count_axis(left: float, plot: float, bottom: float, top: float) -> str:
    parts = []
    for value in ticks(0, top, 5):
        if value != round(value):
            continue
        y = bottom - bottom * 0.9 * value / top
        parts.append(tag("line", x1=left, x2=left + plot, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, f"{value:.0f}", class_="small", text_anchor="end"))
    return "".join(parts)


def _value_label(value: float, left: float, plot: float, bottom: float, edges: np.ndarray) -> str:
    x = left + plot * (value - float(edges[0])) / float(edges[-1] - edges[0])
    return text(x, bottom + 16, f"{value:.4g}", class_="small", text_anchor="middle")
