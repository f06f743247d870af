"""Perturbed suites by the suite that they perturb and by axis, with the drop against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wpray.results.statistics import Difference, Rate, average_of_tried, difference, stratified

Counts = Sequence[tuple[int, int]]  # (successes, episodes with an outcome) of each task
BASE = "unperturbed"


@dataclass(frozen=True, slots=True)
class Perturbed:
    """A success rate under one perturbation, and its difference from the unperturbed suites' rate."""

    rate: Rate
    drop: Difference | None  # negative: worse than without; None if the unperturbed suites were not run


@dataclass(frozen=True, slots=True)
class Robustness:
    """A row a base suite and one of averages, a column an axis; the first column is the unperturbed suite."""

    columns: list[str]
    rows: dict[str, list[Perturbed | None]]  # None: not run


def variations_of(info: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what a run.json says its suites perturb: suite -> (base suite, axis)."""
    listed = (info.get("variations") or {}).items()
    return {suite: (str(pair[0]), str(pair[1])) for suite, pair in listed if isinstance(pair, list) and len(pair) == 2}


def robustness(suites: Mapping[str, Counts], variations: Mapping[str, tuple[str, str]]) -> Robustness | None:
    """Arrange the outcomes of `suites`; None if none of them perturbs another."""
    places = {place: suites[suite] for suite, place in variations.items() if suite in suites}
    if not places:
        return None
    bases, axes = (list(dict.fromkeys(place[index] for place in places)) for index in (0, 1))
    places |= {(base, BASE): suites[base] for base in bases if base in suites}
    columns = [BASE] * any(axis == BASE for _, axis in places) + axes
    rows = {base: [_cell(places, [base], axis) for axis in columns] for base in bases}
    if len(bases) > 1:
        rows["average"] = [_cell(places, bases, axis) for axis in columns]
    return Robustness(columns, rows)


def points_text(drop: Difference) -> str:
    """Return '-12.5 (-20.1 to -4.9)': percentage points with their 95% interval."""
    return f"{100 * drop.value:+.1f} ({100 * drop.low:+.1f} to {100 * drop.high:+.1f})"


def _cell(places: Mapping[tuple[str, str], Counts], bases: Sequence[str], axis: str) -> Perturbed | None:
    """Return the rate over the base suites that were run along the axis; the drop is against the same base suites."""
    there = [base for base in bases if (base, axis) in places]
    if not there:
        return None
    rate = _rate([places[base, axis] for base in there])
    if axis == BASE or not all((base, BASE) in places for base in there):
        return Perturbed(rate, None)
    return Perturbed(rate, difference(rate, _rate([places[base, BASE] for base in there])))


def _rate(suites: Sequence[Counts]) -> Rate:
    return stratified(suites[0]) if len(suites) == 1 else average_of_tried(suites)
