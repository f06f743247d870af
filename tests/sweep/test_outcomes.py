"""Tables and report of a sweep, from recorded runs: rates, paired tests, their correction, the page's markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from statsmodels.stats.multitest import multipletests

from tests.results.recorded import write_run
from wpray.report.curve import Point, curve
from wpray.results.paired import holm, mcnemar_p, pairs_of
from wpray.results.statistics import stratified, wilson
from wpray.sweep.grid import read_grid
from wpray.sweep.outcomes import Evaluated, compared, evaluated, mixed
from wpray.sweep.page import build
from wpray.sweep.tables import PAIRS, RATES, write_tables

SOLVED = {200: 2, 1000: 9, 3000: 18}  # of 4 tasks with 5 trials, by step


def _outcomes(solved: int) -> list[list[bool]]:
    return [[bool(won) for won in row] for row in (np.arange(20) < solved).reshape(5, 4).T]


@pytest.fixture
def found(tmp_path: Path) -> list[Evaluated]:
    return _found(tmp_path)


def _found(root: Path, **changes: object) -> list[Evaluated]:
    for step, solved in SOLVED.items():
        (root / "train" / f"step_{step}" / "vlm").mkdir(parents=True)
        last = step == max(SOLVED)
        write_run(root / "runs" / f"step_{step}", _outcomes(solved), steps=20, **(changes if last else {}))
    grid = read_grid({"task_suite": "fake", "policy": "noop", "vlm_checkpoint": f"{root}/train/*/vlm"})
    places = [root / "runs" / f"step_{step}" for step in SOLVED]
    return evaluated([*grid.checkpoints()], places)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p_values = [*np.random.default_rng(seed).random(12) ** 3, 0.04, 0.04, 1.0]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([]) == []


def test_every_pair_is_tested_on_its_trials(found: list[Evaluated]) -> None:
    assert [(one.step, one.rate.successes, one.rate.trials) for one in found] == [
        *((200, 2, 20), (1000, 9, 20), (3000, 18, 20))
    ]
    assert found[1].rate == stratified([(3, 5), (2, 5), (2, 5), (2, 5)])
    pairs = compared(found)
    assert [(one.a.step, one.b.step) for one in pairs] == [(200, 1000), (200, 3000), (1000, 3000)]
    assert [one.p for one in pairs] == [mcnemar_p(pairs_of(one.a.outcomes, one.b.outcomes)) for one in pairs]
    assert [one.pairs.only_b for one in pairs] == [7, 16, 9]
    assert [one.adjusted for one in pairs] == pytest.approx([2**-6, 3 * 2**-15, 2 * 2**-8])


def test_the_tables_hold_rates_and_pairs(found: list[Evaluated], tmp_path: Path) -> None:
    write_tables(tmp_path, found, compared(found))
    rates = pq.read_table(tmp_path / RATES).to_pylist()
    assert len(rates) == 3 * (1 + 1 + 4)
    overall = [row for row in rates if row["suite"] is None]
    assert [(row["step"], row["rate"], row["trials"]) for row in overall] == [
        *((200, 0.1, 20), (1000, 0.45, 20), (3000, 0.9, 20))
    ]
    assert overall[0]["vlm_checkpoint"].endswith("train/step_200/vlm")
    task = next(row for row in rates if row["step"] == 1000 and row["task_id"] == 0)
    assert (task["low"], task["high"]) == (wilson(3, 5).low, wilson(3, 5).high)
    pairs = pq.read_table(tmp_path / PAIRS).to_pylist()
    assert [row["p_holm"] < 0.05 for row in pairs] == [True] * 3


def test_trials_of_other_conditions_are_no_pairs(tmp_path: Path) -> None:
    found = _found(tmp_path, seed=7)
    assert [(one.a.step, one.b.step) for one in compared(found)] == [(200, 1000)]
    assert "seed (0 in A, 7 in B)" in mixed(found)[0]
    assert "seed (0 in A, 7 in B)" in build("sweep", "finished", found, compared(found), {})


def test_the_report_has_the_curve_and_says_which_differ(found: list[Evaluated]) -> None:
    page = build("<noop>", "finished", found, compared(found), {"checkpoints": []})
    assert "&lt;noop&gt;" in page and "<noop>" not in page
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    circles = list(svg.iter("circle"))
    assert len(circles) == 3
    heights = [float(circle.get("cy", "0")) for circle in circles]
    assert heights == sorted(heights, reverse=True)  # more success is higher up
    assert "training step" in page and "Highest rate: step_3000 (90.0%). All others are shown to be worse." in page
    assert f'href="runs/{found[0].name}/report.html"' in page


def test_a_grid_has_a_line_for_each_of_the_others() -> None:
    lines = [(name, [Point(x, wilson(x, 10), f"{name} {x}") for x in (1, 2)]) for name in ("a", "b")]
    svg = ET.fromstring(curve(lines, "training step").removeprefix('<div class="plot">').removesuffix("</div>"))
    assert len(list(svg.iter("circle"))) == 4
    assert {"a", "b"} <= {label.text for label in svg.iter("text")}
    assert curve([("a", [Point(1, wilson(0, 0), "none")])], "step") == ""
