"""LIBERO-PRO: names by axis, rates by base suite and axis, the drop, and suites that were never published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.results.recorded import write_run
from wpray.benchmarks.libero.suites import AXES, GROUPS, axis_of, expanded
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.results import load
from wpray.results.statistics import average, difference, stratified, wilson
from wpray.results.variations import BASE, robustness, variations_of
from wpray.table.formats import latex, markdown
from wpray.table.study import tabulate

FOUR = GROUPS["libero_all"]


@pytest.mark.parametrize(
    ("given", "suites"),
    [
        (["libero_pro"], [f"{base}_{axis}" for axis in AXES for base in FOUR]),
        (["libero_pro:lan", "swap"], [f"{base}_{axis}" for axis in ("lan", "swap") for base in FOUR]),
        (["libero_10", "LIBERO-PRO:Lan"], ["libero_10", *(f"{base}_lan" for base in FOUR)]),
        (["libero_pro:lan", "libero_10"], [*(f"{base}_lan" for base in FOUR), "libero_10"]),
    ],
)
def test_suites_are_named_by_axis(given: list[str], suites: list[str]) -> None:
    assert expanded(given) == suites
    config = Config.model_validate({"policy": "noop", "task_suite": ",".join(given)})
    assert list(config.suites) == suites
    assert set(config.variations) == {suite for suite in suites if axis_of(suite)}


def test_what_is_no_axis_is_none() -> None:
    assert axis_of("libero_goal_with_object") is axis_of("libero_goal") is axis_of("libero_90_lan") is None
    with pytest.raises(ValueError, match="has the axes lan, object, swap, task, not 'env'"):
        expanded(["libero_pro:env"])


COUNTS = {
    "g": [(9, 10), (8, 10)],
    "s": [(10, 10), (10, 10)],
    "g_lan": [(5, 10), (6, 10)],
    "s_lan": [(9, 10), (9, 10)],
    "g_swap": [(0, 10), (1, 10)],
}
PLACES = {"g_lan": ("g", "lan"), "s_lan": ("s", "lan"), "g_swap": ("g", "swap")}


def test_rates_are_grouped_by_base_suite_and_axis() -> None:
    found = robustness(COUNTS, PLACES)
    assert found is not None
    assert found.columns == [BASE, "lan", "swap"] and list(found.rows) == ["g", "s", "average"]
    lan, base = stratified(COUNTS["g_lan"]), stratified(COUNTS["g"])
    cell = found.rows["g"][1]
    assert cell is not None and cell.rate == lan and cell.drop == difference(lan, base)
    assert found.rows["s"][2] is None
    mean = found.rows["average"]
    assert mean[1] is not None and mean[1].rate == average([COUNTS["g_lan"], COUNTS["s_lan"]])
    assert mean[2] is not None and mean[2].drop == difference(stratified(COUNTS["g_swap"]), base)  # of the same suites


def test_without_the_base_suite_there_is_no_drop() -> None:
    found = robustness({"g_lan": COUNTS["g_lan"]}, PLACES)
    assert found is not None and found.columns == ["lan"]
    assert [cell.drop for cell in found.rows["g"] if cell is not None] == [None]
    assert robustness({"g": COUNTS["g"]}, PLACES) is None


@pytest.mark.parametrize(("p", "q"), [(0.9, 0.4), (0.5, 0.5), (1.0, 0.8), (0.95, 0.93)])
def test_the_interval_of_a_drop_covers_what_it_should(p: float, q: float) -> None:
    rng = np.random.default_rng(0)
    draws = rng.binomial(50, [p, q], size=(3000, 2))
    found = [difference(wilson(int(b), 50), wilson(int(a), 50)) for a, b in draws]
    assert np.mean([drop.low <= q - p <= drop.high for drop in found]) >= 0.94


def test_a_table_shows_the_drop_of_a_policys_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [[True] * 8, [True] * 8], variations={"fake": ["base_suite", "lan"]})
    study = tabulate([load(tmp_path / "a")])
    text = markdown(study)
    assert "| scripted [1] | lan |" in text and "| base_suite | 100.0 |" in text
    assert latex(study).count("\\begin{tabular}") == 2
    assert variations_of({"variations": {"x": ["a", "b"], "y": "odd"}}) == {"x": ("a", "b")}


@pytest.mark.libero
@pytest.mark.parametrize("suite", ["libero_goal_env", "libero_object_temp", "libero_10_with_milk"])
def test_a_suite_that_was_never_published_is_said_to_be_so(suite: str) -> None:
    from wpray.benchmarks.libero.tasks import list_tasks

    with pytest.raises(BadInputError, match=r"published without (its files|initial states)") as caught:
        list_tasks(suite, 300)
    assert "reinstall" not in str(caught.value)


@pytest.mark.libero
def test_the_sixteen_suites_are_whole() -> None:
    from wpray.benchmarks.libero.tasks import list_tasks

    for suite in expanded(["libero_pro"]):
        assert len(list_tasks(suite)) == 10
