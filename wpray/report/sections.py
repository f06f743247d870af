"""Sections of the report: each returns HTML, or an empty string if there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from wpray.report import charts, timeline
from wpray.report.activity import Activity
from wpray.report.facts import RunFacts, mean
from wpray.report.svg import tag
from wpray.report.videos import Video
from wpray.report.waypoints import Segments
from wpray.results.difficulty import by_difficulty, source_of_levels
from wpray.results.statistics import Rate
from wpray.results.summary import interval
from wpray.results.variations import Perturbed, points_text, robustness, variations_of
from wpray.types import EpisodeRow, TaskKey, TrialKey

_VIDEOS_IN_SIGHT = 6


def section(title: str, about: str, content: str, name: str) -> str:
    """Return one card of the page."""
    return tag("section", f"<h2>{escape(title)}</h2><p>{escape(about)}</p>{content}", id=name)


def headline(facts: RunFacts, info: Mapping[str, Any], missing: Sequence[str]) -> str:
    """Return the rate with its interval, and the run in a few numbers; `missing` lists what the report lacks."""
    rate = facts.overall
    figure = f"{rate.rate:.1%}" if rate.trials else "-"
    sure = f"95% interval {rate.low:.1%} to {rate.high:.1%}" if rate.trials else "no episode has an outcome"
    sure += f", average over {len(facts.suites)} suites" if len(facts.suites) > 1 else ""
    left = f'<div><div class="rate">{figure}</div><div>success: {rate.successes} of {rate.trials} episodes</div>'
    left += f'<div class="sure">{sure}</div></div>'
    notes = [_note(text) for text in (*_notes(facts, info), *missing)]
    return tag("section", f'<div class="head">{left}{_tiles(facts)}</div>{"".join(notes)}', id="headline")


def suites(facts: RunFacts) -> str:
    """Return the rates by suite; empty if there is one."""
    listed = facts.suites
    if len(listed) < 2:
        return ""
    names = ("suite", "success", "rate", "95% interval", "errors")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = [_suite_row(suite.suite, suite.rate, suite.errors) for suite in listed]
    rows.append(_suite_row("average", facts.overall, facts.errors))
    about = "Every suite counts alike in the average; intervals are stratified by task."
    return section("Success by suite", about, f"<table><tr>{head}</tr>{''.join(rows)}</table>", "suites")


def perturbations(facts: RunFacts, info: Mapping[str, Any]) -> str:
    """Return the rates of perturbed suites by suite and axis; empty if there are none."""
    found = robustness({suite.suite: suite.counts for suite in facts.suites}, variations_of(info))
    if found is None:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("suite", *found.columns))
    rows = "".join(
        f"<tr><th>{escape(base)}</th>{''.join(f'<td>{_perturbed(cell)}</td>' for cell in cells)}</tr>"
        for base, cells in found.rows.items()
    )
    about = "By suite and by what was perturbed. Below a rate: its difference from the unperturbed suite, in points."
    return section("Success under perturbations", about, f"<table><tr>{head}</tr>{rows}</table>", "perturbations")


def difficulty(facts: RunFacts, info: Mapping[str, Any]) -> str:
    """Return the rates by axis and difficulty; empty if the benchmark grades no tasks."""
    counts = {TaskKey(task.suite, task.task_id): (task.rate.successes, task.rate.trials) for task in facts.tasks}
    found = by_difficulty(counts, [info])
    if found is None:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *(f"level {level}" for level in found.columns)))
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{_graded(rate)}</td>' for rate in rates)}</tr>"
        for name, rates in found.rows.items()
    )
    about = f"Levels are {source_of_levels(info)}. All tasks of a level weigh alike. Below a rate: its 95% interval."
    return section("Success by difficulty", about, f"<table><tr>{head}</tr>{rows}</table>", "difficulty")


def _graded(rate: Rate) -> str:
    return f"{rate.rate:.1%}<br>{interval(rate)}" if rate.trials else "-"


def _perturbed(cell: Perturbed | None) -> str:
    if cell is None or not cell.rate.trials:
        return "-"
    drop = cell.drop
    points = f"<br>{points_text(drop)}" if drop is not None and not math.isnan(drop.value) else ""
    return f"{cell.rate.rate:.1%}{points}"


def _suite_row(name: str, rate: Rate, errors: int) -> str:
    figures = (f"{rate.rate:.1%}", interval(rate)) if rate.trials else ("-", "-")
    cells = (f"{rate.successes}/{rate.trials}", *figures, str(errors))
    return f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def tasks(facts: RunFacts) -> str:
    """Return the bars by task."""
    about = (
        "Share of solved episodes. The thin line on a bar is its 95% interval, the rates that fit what was seen: "
        "the fewer episodes, the wider."
    )
    below = [task.label for task in facts.tasks if task.rate.trials and task.rate.high < facts.overall.rate]
    if below:
        about += f" Where it fails: the whole interval lies below the overall rate in task {', '.join(below)}."
    return section("Success by task", about, charts.task_bars(facts), "tasks")


def episodes(facts: RunFacts, videos: Sequence[Video]) -> str:
    """Return the heat map of all episodes."""
    links = {TrialKey.from_row(video.row): f"#{video.anchor}" for video in videos}
    kinds = {"success": "success", "failure": "failure", "error": "error (no outcome)", "missing": "not run"}
    legend = _legend({kinds[name]: colour for name, colour in charts.OUTCOME_COLOURS.items()})
    about = (
        "A row a task, a column a trial (the task's initial state). Cells with a triangle lead to the episode's video."
    )
    return section("Every episode", about, legend + charts.heat_map(facts, links), "episodes")


def steps(facts: RunFacts) -> str:
    """Return the histograms of control steps, of successes and of failures."""
    taken = facts.steps_to_success
    if not taken:
        return ""
    failures = [row["num_steps"] for row in facts.rows if row["status"] == "failure"]
    about = "Control steps that episodes took, the first steps in which objects settle included."
    parts = [charts.histogram(taken, "steps", "control steps to success")]
    if len(set(failures)) == 1:
        about += f" Failures: {len(failures)}, each after {failures[0]} steps."
    elif failures:
        parts.append(
            charts.histogram(failures, "steps", "control steps of failures", colour=charts.OUTCOME_COLOURS["failure"])
        )
    return section("Steps to success", about, f'<div class="two">{"".join(parts)}</div>', "steps")


def metrics(facts: RunFacts) -> str:
    """Return the numbers that environment and policy added, by name."""
    values: dict[str, dict[str, list[float]]] = {}
    columns = _ends_and_rewards(facts.rows)
    for row in facts.rows:
        for name, value in [*(row["metrics"] or ()), *((title, row[name]) for name, title in columns.items())]:
            if value is not None and math.isfinite(value):
                values.setdefault(name, {}).setdefault(row["status"], []).append(value)
    if not values:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", "episodes", "mean", "least", "most", "successes", "failures"))
    rows = "".join(_metric(name, found) for name, found in sorted(values.items()))
    about = "Numbers that environment and policy have noted of episodes; means are over the episodes that have them."
    table = f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    return section("Metrics", about, table, "metrics")


def _ends_and_rewards(rows: Sequence[EpisodeRow]) -> Mapping[str, str]:
    """Return column -> title of what the environment says of episodes, as far as it says more than success does."""
    rewarded = any(row["reward"] not in (None, float(row["success"] or 0)) for row in rows)
    truncated = any(row["truncated"] for row in rows)
    return ({"reward": "reward"} if rewarded else {}) | ({"truncated": "ended by the environment"} if truncated else {})


def _metric(name: str, found: Mapping[str, list[float]]) -> str:
    numbers = [value for values in found.values() for value in values]
    by_outcome = (mean(found.get(status, [])) for status in ("success", "failure"))
    shown = (mean(numbers), min(numbers), max(numbers), *by_outcome)
    cells = "".join(f"<td>{'-' if value is None else f'{value:.4g}'}</td>" for value in shown)
    return f"<tr><th>{escape(name)}</th><td>{len(numbers)}</td>{cells}</tr>"


def videos(shown: Sequence[Video]) -> str:
    """Return the videos, failures first."""
    if not shown:
        return ""
    ordered = sorted(shown, key=lambda video: video.row["status"] != "failure")
    several = len({video.row["suite"] for video in shown}) > 1
    figures = [_figure(video, f"{escape(video.row['suite'])}, " if several else "") for video in ordered]
    content = f'<div class="videos">{"".join(figures[:_VIDEOS_IN_SIGHT])}</div>'
    if len(figures) > _VIDEOS_IN_SIGHT:
        more = f"<summary>{len(figures) - _VIDEOS_IN_SIGHT} more</summary>"
        content += f'<details>{more}<div class="videos">{"".join(figures[_VIDEOS_IN_SIGHT:])}</div></details>'
    about = "Rendered from the recorded states: the scene's camera on the left, the wrist's on the right."
    return section("Videos", about, content, "videos")


def waypoints(segments: Segments) -> str:
    """Return the histograms of waypoint misses and planned durations."""
    if not len(segments.durations):
        return ""
    planned = charts.histogram(segments.durations.tolist(), "steps", "planned duration of a segment", colour="#4c78a8")
    if not len(segments.misses):
        why = "the run kept no trajectories" if segments.units_known else "run.json does not tell the waypoints' units"
        about = f"How long segments were planned. How well waypoints were reached is not known: {why}."
        return section("Waypoints", about, f'<div class="two">{planned}</div>', "waypoints")
    millimetres = 1000 * segments.misses
    missed = charts.histogram(millimetres.tolist(), "mm", "planned to reached position", colour="#4c78a8")
    about = (
        "At the end of each segment: how far the gripper is from the waypoint that the segment aimed at. "
        f"Half of the {len(millimetres)} segments ended within {np.median(millimetres):.0f} mm, "
        f"nine of ten within {np.quantile(millimetres, 0.9):.0f} mm ({segments.episodes} episodes)."
    )
    table = _waypoint_table(segments)
    return section("Waypoints", about, f'<div class="two">{missed}{planned}</div>{table}', "waypoints")


def time(activity: Activity) -> str:
    """Return the timeline of actors and policy."""
    shares = activity.shares
    shown = {name: share for name, share in shares.items() if share > 0.0005}
    legend = _legend(
        {
            f"{timeline.ACTIVITY_NAMES[name]} {share:.1%}": timeline.ACTIVITY_COLOURS[name]
            for name, share in shown.items()
        }
    )
    parts = [timeline.total_bar(activity), "<h3>Over time, all env actors together</h3>"]
    parts += [timeline.shares_panel(activity), "<h3>Over time, each env actor</h3>", timeline.lanes_panel(activity)]
    if activity.computing.any():
        about = "replicas computing (red area, left scale) and mean size of the batches begun (line, right scale)"
        parts += [f"<h3>Over time, the policy: {about}</h3>", timeline.policy_panel(activity)]
    return section("Where the time went", timeline.bottleneck(activity), legend + "".join(parts), "time")


def _figure(video: Video, where: str) -> str:
    row = video.row
    preload = "auto" if video.source.startswith("data:") else "metadata"  # loads the first frame at once
    player = tag("video", " ", src=video.source, controls="", muted="", playsinline="", loop="", preload=preload)
    caption = (
        f'<span class="badge {row["status"]}">{row["status"]}</span>{where}task {row["task_id"]}, '
        f"trial {row['trial']}, {row['num_steps']} steps: {escape(row['instruction'])}"
    )
    return tag("figure", f"{player}<figcaption>{caption}</figcaption>", id=video.anchor)


def _tiles(facts: RunFacts) -> str:
    average, span = mean(facts.steps_to_success), facts.span_s
    failures = sum(row["status"] == "failure" for row in facts.rows)
    numbers = {
        "episodes": f"{len(facts.rows)}" + (f" of {facts.planned}" if facts.planned > len(facts.rows) else ""),
        "failures": str(failures),
        "errors, not counted": str(facts.errors),
        "mean steps to success": "-" if average is None else f"{average:.0f}",
        "from start to end": _span(span),
        "episodes a minute": f"{60 * len(facts.rows) / span:.1f}" if span else "-",
    }
    tiles = (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in numbers.items())
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _notes(facts: RunFacts, info: Mapping[str, Any]) -> list[str]:
    notes = []
    if info.get("privileged"):
        notes.append("This policy reads object poses from the simulator: its rate tests the harness, no model.")
    if facts.planned > len(facts.rows):
        notes.append(f"{len(facts.rows)} of {facts.planned} episodes have run; the rate is theirs.")
    if info.get("stop_reason"):
        early = " before its last episode" if facts.planned > len(facts.rows) else ""
        notes.append(f"The run stopped{early}: {info['stop_reason']}")
    if 0 < facts.overall.trials < 10 * len(facts.tasks):
        notes.append("Few episodes a task: look at the overall interval, not at single tasks.")
    return notes


def _note(content: str) -> str:
    return f'<p class="note">{escape(content)}</p>'


def _legend(entries: Mapping[str, str]) -> str:
    items = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries.items())
    return f'<div class="legend">{"".join(items)}</div>'


def _waypoint_table(segments: Segments) -> str:
    rows = []
    for index in range(int(segments.waypoints.max()) + 1):
        misses = 1000 * segments.misses[segments.waypoints == index]
        if len(misses):
            cells = (len(misses), f"{np.median(misses):.1f} mm", f"{np.quantile(misses, 0.9):.1f} mm")
            rows.append(f"<tr><td>{index + 1}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ("waypoint of its plan", "segments run to the end", "median distance", "90% are within")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<details><summary>By waypoint</summary><table><tr>{head}</tr>{''.join(rows)}</table></details>"


def _span(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if minutes else f"{left} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"
