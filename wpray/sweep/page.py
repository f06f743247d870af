"""Report of a sweep: success over training steps, the checkpoints, and which of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wpray.report.curve import Point, curve
from wpray.report.page import document
from wpray.report.sections import section
from wpray.report.svg import tag
from wpray.results.summary import interval
from wpray.sweep.outcomes import Evaluated, SweepComparison, mixed


def build(
    title: str, state: str, found: Sequence[Evaluated], pairs: Sequence[SweepComparison], info: Mapping[str, Any]
) -> str:
    """Return the HTML of a sweep's report; links to the runs' reports are relative to its folder."""
    held_out, found = [one for one in found if one.held_out], [one for one in found if not one.held_out]
    parts = [
        _header(title, state, found),
        _race(info.get("race"), held_out, found),
        _curve(found),
        _checkpoints(found),
        _comparisons(found, pairs),
        _provenance(info),
    ]
    return document(title, parts)


def _header(title: str, state: str, found: Sequence[Evaluated]) -> str:
    episodes = sum(len(one.outcomes) for one in found)
    badge = f'<span class="badge {escape(state)}">{escape(state)}</span>'
    return f'<h1>{escape(title)}</h1><div class="sure">{badge}{len(found)} checkpoints, {episodes} episodes</div>'


def _race(race: Mapping[str, Any] | None, held_out: Sequence[Evaluated], found: Sequence[Evaluated]) -> str:
    """Return rules, rounds and winner of a race; empty if there was none."""
    if race is None:
        return ""
    said = {one.name: one.label for one in found}
    content = "".join(f"<p><b>{escape(_won(one))}</b></p>" for one in held_out)
    rows = []
    for number, its in enumerate(race["rounds"], 1):
        rates = ", ".join(f"{said.get(name, name)} {rate:.1%}" for name, rate in its["rates"].items())
        went_on = ", ".join(said.get(name, name) for name in its["went_on"])
        rows.append(_row("td", [str(number), str(its["trials_end"]), rates, went_on]))
    head = _row("th", ["round", "trials a task end at", "rates", "went on"])
    about = f"{race['rules']} Rates of trials that have chosen a checkpoint flatter it."
    return section("Race", about, f"{content}<table>{head}{''.join(rows)}</table>", "race")


def _won(one: Evaluated) -> str:
    rate = one.rate
    figure = f"{rate.rate:.1%} ({rate.successes} of {rate.trials}, 95% interval {interval(rate)})"
    return f"Winner: {one.label}. On its held-out trials: {figure if rate.trials else 'no outcome'}."


def _curve(found: Sequence[Evaluated]) -> str:
    stepped = [one for one in found if one.step is not None]
    x_name = "training step" if len(stepped) == len(found) else "checkpoint, in order"
    xs = [
        float(number if one.step is None or len(stepped) < len(found) else one.step) for number, one in enumerate(found)
    ]
    lines: dict[str, list[Point]] = {}
    for one, x in zip(found, xs, strict=True):
        lines.setdefault(_line(one, found), []).append(Point(x, one.rate, one.label))
    ordered = [(name, sorted(points, key=lambda point: point.x)) for name, points in lines.items()]
    about = (
        "Each point is a checkpoint; the thin lines are 95% intervals of single checkpoints. The highest of many "
        "points is partly luck, so look at the paired tests below before choosing one."
    )
    return section("Success over training", about, curve(ordered, x_name), "curve")


def _line(one: Evaluated, found: Sequence[Evaluated]) -> str:
    """Return the name of a checkpoint's line, which distinguishes it from others of the same step."""
    if len({other.step for other in found}) == len(found):
        return ""
    first, *others = one.label.split(" + ")
    return " + ".join(others) if others else first.rsplit("/", 1)[0]


def _checkpoints(found: Sequence[Evaluated]) -> str:
    suites = list(dict.fromkeys(suite for one in found for suite in one.suites))
    several = suites if len(suites) > 1 else []
    head = _row("th", ["checkpoint", "step", "success", "rate", "95% interval", *several, "errors", "run"])
    rows = []
    for one in found:
        rate = one.rate
        figure = f"{rate.rate:.1%}" if rate.trials else "-"
        by_suite = [f"{one.suite_rate(suite).rate:.1%}" if suite in one.suites else "-" for suite in several]
        step = "-" if one.step is None else f"{one.step:,}"
        cells = [one.label, step, f"{rate.successes}/{rate.trials}", figure, interval(rate), *by_suite, str(one.errors)]
        link = tag("a", escape(one.state), href=f"runs/{one.name}/report.html")
        rows.append(_row("td", cells, f"<td>{link}</td>"))
    about = "Errors are left out of every rate. Each checkpoint has a run of its own, with its own report."
    return section("Checkpoints", about, f"<table>{head}{''.join(rows)}</table>", "checkpoints")


def _comparisons(found: Sequence[Evaluated], pairs: Sequence[SweepComparison]) -> str:
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in mixed(found))
    if not pairs:
        return section("Which differ", "No two checkpoints have the same trials.", notes, "pairs") if notes else ""
    about = (
        "Exact McNemar tests on the trials that have an outcome in both, for every two checkpoints. p is adjusted for "
        f"their number, {len(pairs)}, by Holm's method: those under 0.05 hold together at the 5% level."
    )
    shown = [one for one in pairs if one.shown]
    content = f"<p>{escape(_best(found, pairs))}</p>"
    content += _pair_table(shown) if shown else "<p>No two checkpoints are shown to differ.</p>"
    content += f"<details><summary>All {len(pairs)} comparisons</summary>{_pair_table(pairs)}</details>"
    return section("Which differ", about, notes + content, "pairs")


def _best(found: Sequence[Evaluated], pairs: Sequence[SweepComparison]) -> str:
    """Return which checkpoint has the highest rate, and which are not shown to be worse."""
    tried = [one for one in found if one.rate.trials]
    if not tried:
        return "No checkpoint has an outcome."
    best = max(tried, key=lambda one: one.rate.rate)
    beaten = {name for pair in pairs if pair.shown for name in _other(pair, best)}
    level = [one.label for one in tried if one.name not in beaten and one is not best]
    said = f"Highest rate: {best.label} ({best.rate.rate:.1%})."
    return (
        f"{said} Not shown to be worse: {', '.join(level)}." if level else f"{said} All others are shown to be worse."
    )


def _other(pair: SweepComparison, one: Evaluated) -> list[str]:
    """Return the name of the checkpoint that the pair holds beside `one`; none if it is of two others."""
    names = [pair.a.name, pair.b.name]
    return [name for name in names if name != one.name] if one.name in names else []


def _pair_table(pairs: Sequence[SweepComparison]) -> str:
    head = _row("th", ["A", "B", "trials", "only A", "only B", "B - A, points", "95% interval", "p (Holm)"])
    rows = []
    for one in pairs:
        low, high = one.interval
        numbers = (str(one.pairs.total), str(one.pairs.only_a), str(one.pairs.only_b), _points(one.pairs.difference))
        cells = [one.a.label, one.b.label, *numbers, f"{_points(low)} to {_points(high)}", f"{one.adjusted:.3g}"]
        rows.append(_row("td", cells))
    return f"<table>{head}{''.join(rows)}</table>"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _row(kind: str, cells: Sequence[str], more: str = "") -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}{more}</tr>"


def _provenance(info: Mapping[str, Any]) -> str:
    whole = escape(json.dumps(info, indent=2, sort_keys=True))
    about = "What was asked, and the paths of every checkpoint; versions and digests are in the runs' own reports."
    return section(
        "Provenance", about, f"<details><summary>sweep.json</summary><pre>{whole}</pre></details>", "provenance"
    )
