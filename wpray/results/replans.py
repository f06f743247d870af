"""Log lines of an episode's replans, made by its worker so that the driver does not read its rows."""

from __future__ import annotations

from collections.abc import Iterable

from wpray.types import Decision


def replan_lines(planner: str, decisions: Iterable[Decision]) -> tuple[str, ...]:
    """Return a line per plan (none for chunks): `[replan 1] VLM: 7 waypoints, durations [12, 9, ...], ...`."""
    return tuple(_line(planner, decision) for decision in decisions if decision.kind == "plan")


def _line(planner: str, decision: Decision) -> str:
    durations = [] if decision.durations is None else decision.durations.tolist()
    plan = f"{len(durations)} waypoints, durations {durations}"
    number = 1 + (decision.plan_index or 0)
    return f"[replan {number}] {planner}: {plan}, step {decision.step}, {decision.wait_s:.2f} s"
