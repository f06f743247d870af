"""Success by difficulty, where a benchmark grades its tasks."""

from __future__ import annotations

from pathlib import Path

from tests.results.recorded import write_run
from wpray.report.page import write_report
from wpray.results import load
from wpray.results.difficulty import by_difficulty, facts_of, source_of_levels
from wpray.results.statistics import stratified
from wpray.table.formats import latex, markdown
from wpray.table.study import tabulate
from wpray.types import TaskKey

LEVELS = {TaskKey("a", 0): "1", TaskKey("a", 1): "2", TaskKey("b", 0): "2", TaskKey("c", 0): "2"}
VARIATIONS = {"variations": {"a": ["base", "camera"], "b": ["other", "camera"], "c": ["base", "noise"]}}
COUNTS = {TaskKey("a", 0): (1, 2), TaskKey("a", 1): (0, 2), TaskKey("b", 0): (1, 1), TaskKey("c", 0): (3, 4)}


def test_rates_are_grouped_by_axis_and_level_over_all_tasks() -> None:
    found = by_difficulty(COUNTS | {TaskKey("a", 2): (9, 9)}, [facts_of("the authors'", LEVELS) | VARIATIONS])
    assert found is not None and found.columns == ["1", "2"] and list(found.rows) == ["camera", "noise", "all"]
    assert found.rows["camera"] == [stratified([(1, 2)]), stratified([(0, 2), (1, 1)])]
    assert [rate.trials for rate in found.rows["noise"]] == [0, 4]
    assert found.rows["all"][1] == stratified([(0, 2), (1, 1), (3, 4)])


def test_tasks_without_levels_have_no_table_and_damaged_ones_none_either() -> None:
    assert by_difficulty(COUNTS, [VARIATIONS]) is None
    for damaged in ("odd", {"levels": 3}, {"levels": {"a": [1]}}, {"levels": {"a": {"1": "0"}}}):
        assert by_difficulty(COUNTS, [{"difficulty": damaged}]) is None
    assert source_of_levels({"difficulty": {"source": "x"}}) == "x" and source_of_levels({"difficulty": 1}) is None


def test_table_and_report_show_them(tmp_path: Path) -> None:
    levels = facts_of("of the authors", {TaskKey("fake", 0): "1", TaskKey("fake", 1): "3"})
    write_run(tmp_path, [[True] * 4, [False] * 4], variations={"fake": ["base", "camera"]}, **levels)
    study = tabulate([load(tmp_path)])
    text = markdown(study)
    assert (
        "| scripted [1] | level 1 | level 3 |" in text and "| camera | 100.0 [51.0, 100.0] | 0.0 [0.0, 49.0] |" in text
    )
    assert "levels are of the authors" in text
    assert latex(study).count("\\begin{tabular}") == 3
    page = write_report(tmp_path).read_text()
    assert "Success by difficulty" in page and "<th>level 3</th>" in page and "Levels are of the authors" in page
