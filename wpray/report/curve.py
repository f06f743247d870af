"""Curve of success rates over training steps as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wpray.report.charts import WIDTH
from wpray.report.svg import drawing, tag, text, ticks, tip
from wpray.report.timeline import ACTIVITY_COLOURS
from wpray.results.statistics import Rate

_LEFT, _RIGHT, _TOP, _HEIGHT = 56.0, 24.0, 12.0, 300.0
_DOT = 4.0
_MOST_TICKS = 9
_COLOURS = [ACTIVITY_COLOURS[name] for name in ("simulate", "wait", "render", "error", "reset")]  # all tell them apart


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint of the curve."""

    x: float
    rate: Rate
    label: str


def curve(lines: Sequence[tuple[str, Sequence[Point]]], x_name: str) -> str:
    """Draw the rates of each line's points with their 95% intervals; `x_name` labels the axis.

    Points without a trial are left out.
    """
    shown = [(name, [point for point in points if point.rate.trials]) for name, points in lines]
    xs = [point.x for _, points in shown for point in points]
    if not xs:
        return ""
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 1, high + 1
    parts = [_axes(low, high, x_name)]
    for number, (name, points) in enumerate(shown):
        parts.append(_line(name if len(shown) > 1 else "", points, _COLOURS[number % len(_COLOURS)], low, high))
    return drawing(WIDTH, _TOP + _HEIGHT + 44, parts, f"Success rate over {x_name}, with 95% intervals")


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + 12 + (WIDTH - _LEFT - _RIGHT - 24) * (value - low) / (high - low)


def _y(rate: float) -> float:
    return _TOP + _HEIGHT * (1 - rate)


def _axes(low: float, high: float, x_name: str) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share)
        parts.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 8, y + 4, f"{share:.0%}", class_="small", text_anchor="end"))
    for value in ticks(low, high, _MOST_TICKS):
        label = f"{value:,.0f}" if value == round(value) else ""
        parts.append(text(_x(value, low, high), _TOP + _HEIGHT + 18, label, class_="small", text_anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(text(middle, _TOP + _HEIGHT + 38, x_name, class_="small", text_anchor="middle"))
    return "".join(parts)


def _line(name: str, points: Sequence[Point], colour: str, low: float, high: float) -> str:
    places = [(_x(point.x, low, high), _y(point.rate.rate)) for point in points]
    way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [tag("path", d=way, fill="none", stroke=colour, stroke_width=1.5, opacity=0.7)] if places else []
    for point, (x, y) in zip(points, places, strict=True):
        top, bottom = _y(point.rate.high), _y(point.rate.low)
        whisker = f"M{x - 4:.1f} {top:.1f}h8M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 4:.1f} {bottom:.1f}h8"
        rate = point.rate
        said = f"{point.label}\n{rate.successes} of {rate.trials}: {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})"
        mark = tag("path", d=whisker, class_="whisker") + tag("circle", cx=x, cy=y, r=_DOT, fill=colour)
        parts.append(tag("g", tip(said) + mark))
    if name and places:
        parts.append(text(places[-1][0] - 6, places[-1][1] - 8, name, class_="small", text_anchor="end", fill=colour))
    return "".join(parts)
