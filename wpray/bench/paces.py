"""Paces of measured runs beside their forecasts, by number of environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from wpray.config.value_types import Auto
from wpray.results import load
from wpray.results.pace import span_s, steady_per_min
from wpray.results.sessions import sessions

if TYPE_CHECKING:
    from wpray.run.plan import Plan  # it imports Ray, which must find the process prepared


@dataclass(frozen=True, slots=True)
class Pace:
    """Episodes a minute of one run, and what `--plan` said of it before."""

    asked: int | Auto
    environments: tuple[int, ...]  # as the run went on
    episodes: int
    steady: float | None  # while all environments had work; None: the run was too short to tell
    span: float  # from the first episode's start to the last one's end
    planned_steady: float
    planned_span: float

    @classmethod
    def of(cls, asked: int | Auto, folder: Path, plan: Plan) -> Pace:
        """Return the pace of the run in `folder`."""
        episodes = pq.read_table(folder / "episodes.parquet")
        changes = sessions(load(folder).info)[-1].get("environments", [])
        count, found = episodes.num_rows, plan.found
        return cls(
            asked,
            tuple(change["number"] for change in changes) or (len(set(episodes["worker"].to_pylist())),),
            count,
            steady_per_min(episodes),
            60 * count / max(1e-9, span_s(episodes)),
            found.per_min,
            60 * count / max(1e-9, found.span_s),
        )


def figures_of(paces: Sequence[Pace]) -> list[dict[str, Any]]:
    """Return the paces with their ratios to the forecast, and to the best number of environments that was given."""
    best = max((pace.steady for pace in paces if pace.steady is not None and pace.asked != "auto"), default=None)
    return [
        asdict(pace)
        | {
            "forecast_ratio": None if pace.steady is None else pace.planned_steady / pace.steady,
            "span_forecast_ratio": pace.planned_span / pace.span,
            "of_best": None if pace.steady is None or best is None else pace.steady / best,
        }
        for pace in paces
    ]


def print_paces(paces: Sequence[Pace], source: str, console: Console) -> None:
    """Print a row for each run: measured, forecast and their ratio, steady and whole, and the share of the best."""
    table = Table(title="episodes a minute", box=None, title_justify="left")
    for name in ("environments", "steady", "plan", "ratio", "whole run", "plan", "ratio", "of the best given"):
        table.add_column(name, justify="right")
    for row in figures_of(paces):
        said = ", ".join(str(number) for number in row["environments"])
        table.add_row(
            f"auto: {said}" if row["asked"] == "auto" else said,
            *(_rounded(row["steady"]), _rounded(row["planned_steady"]), _share(row["forecast_ratio"])),
            *(_rounded(row["span"]), _rounded(row["planned_span"]), _share(row["span_forecast_ratio"])),
            _share(row["of_best"]),
        )
    console.print(table)
    console.print(f"plan: from {source}", highlight=False, soft_wrap=True)


def _rounded(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"


def _share(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
