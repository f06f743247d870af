"""Helpers that build escaped SVG and HTML strings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from html import escape

Attribute = str | float | int | None
_LEGIBLE = 0.7  # share of a figure's width below which its text is hard to read


def tag(name: str, content: str = "", **attributes: Attribute) -> str:
    """Return `<name attributes>content</name>`, where `content` is markup already.

    Attribute values are escaped, and None is left out. `class_` means class; other underscores become hyphens.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{content}</{name}>" if content else f"<{name}{said}/>"


def text(x: float, y: float, content: str, **attributes: Attribute) -> str:
    """Return a line of text; `content` is escaped."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def tip(content: str) -> str:
    """Return the tooltip of the enclosing element."""
    return tag("title", escape(content))


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """Return a figure that scales with the page, and scrolls where scaling would make its text too small to read.

    `label` is the description for screen readers.
    """
    box = f"0 0 {_text(width)} {_text(height)}"
    style = f"max-width:{_text(width)}px;min-width:{_text(_LEGIBLE * width)}px"
    figure = tag("svg", "".join(parts), viewBox=box, width="100%", role="img", aria_label=label, style=style)
    return f'<div class="plot">{figure}</div>'


def shortened(content: str, length: int) -> str:
    """Return `content`, shortened in the middle if it is longer than `length`."""
    if len(content) <= length:
        return content
    tail = length // 3
    return f"{content[: length - tail - 1].rstrip()}…{content[-tail:].lstrip()}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers from `low` to `high`."""
    step, factors = 10.0**-6, itertools.cycle((2.0, 2.5, 2.0))
    while (high - low) / step > most - 1:
        step *= next(factors)
    return [round(step * number, 9) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return escape(str(value))
