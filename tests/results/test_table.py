"""The table of a study: rates against compare, bold against the exact test, formats against their own parsers."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.results.recorded import write_run
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import outcome_fields
from wpray.results import Run, load
from wpray.results.paired import mcnemar_p
from wpray.results.statistics import average, stratified
from wpray.table.__main__ import main
from wpray.table.formats import comma_separated, latex, markdown
from wpray.table.notes import legend
from wpray.table.study import mixed, paired, tabulate

RECORDED = Path(__file__).parents[2] / "notebooks" / "data"


def _run(path: Path, outcomes: np.ndarray, suite: str = "fake", **changes: object) -> Run:
    """A run of any suite, by name."""
    write_run(path, [[bool(x) for x in row] for row in outcomes], steps=20, **changes)
    run = load(path)
    column = run.episodes.schema.get_field_index("suite")
    episodes = run.episodes.set_column(column, "suite", pa.array([suite] * len(run.episodes)))
    run.info["outcome_fields"] = run.info["outcome_fields"] | {"task_suite": suite}
    return Run(run.path, run.info, episodes, run.decisions)


def _solved(shape: tuple[int, int], solved: int) -> np.ndarray:
    flat = np.arange(shape[0] * shape[1]) < solved
    return flat.reshape(shape)


@pytest.fixture
def study_runs(tmp_path: Path) -> list[Run]:
    """Two policies on two suites: clearly different in x, alike in y."""
    return [
        _run(tmp_path / "ax", _solved((4, 5), 18), "x"),
        _run(tmp_path / "ay", _solved((4, 5), 10), "y"),
        _run(tmp_path / "bx", _solved((4, 5), 6), "x", policy="noop"),
        _run(tmp_path / "by", _solved((4, 5), 9), "y", policy="noop"),
    ]


def test_runs_of_one_policy_are_one_row(study_runs: list[Run]) -> None:
    study = tabulate(study_runs)
    assert [entry.name for entry in study.entries] == ["scripted", "noop"]
    assert study.columns == ["x", "y", "average"]
    rates = [[cell.rate.rate for cell in cells] for cells in study.cells]
    assert rates == [[0.9, 0.5, pytest.approx(0.7)], [0.3, 0.45, pytest.approx(0.375)]]
    assert study.cells[0][0].rate == stratified([(5, 5), (5, 5), (5, 5), (3, 5)])


def test_bold_is_where_the_paired_test_says_so(study_runs: list[Run]) -> None:
    study = tabulate(study_runs)
    assert [[cell.best for cell in cells] for cells in study.cells] == [[True, False, True], [False] * 3]
    a, b = study.entries
    assert mcnemar_p(paired(a, b, ["x"])) < 0.05 <= mcnemar_p(paired(a, b, ["y"]))
    third = [*study_runs, _run(study_runs[0].path.parent / "cx", _solved((4, 5), 17), "x", policy="random")]
    assert not any(cell.best for cells in tabulate(third).cells for cell in cells[:1])  # one success is not enough
    assert not any(cell.best for cells in tabulate(study_runs[:2]).cells for cell in cells)  # nothing to be better than


def test_a_suite_that_a_policy_has_not_run_leaves_its_average_out(study_runs: list[Run]) -> None:
    study = tabulate(study_runs[:3])
    assert study.cells[1][1].rate.trials == study.cells[1][2].rate.trials == 0
    assert not study.cells[0][2].best  # alone in its column
    assert re.search(r"^\| noop \[2\] \| 30\.0 \[[\d., ]+\] \| - \| - \|$", markdown(study), re.MULTILINE)


def test_a_trial_counts_once(study_runs: list[Run]) -> None:
    with pytest.raises(BadInputError, match="20 trials of x are in another run of scripted"):
        tabulate([study_runs[0], study_runs[0]])
    assert [entry.name for entry in tabulate([study_runs[0]] * 2, ["a", "b"]).entries] == ["a", "b"]


def test_policies_with_other_files_are_other_rows(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / name, _solved((1, 2), 1), policy_files={f"/{name}/model": digest})
        for name, digest in (("a", "1a"), ("b", "2b"))
    ]
    assert [entry.name for entry in tabulate(runs).entries] == ["scripted", "scripted (2)"]
    moved = [_run(tmp_path / "c", _solved((1, 2), 1), "y", policy_files={"/elsewhere/model": "1a"})]
    assert len(tabulate(runs + moved).entries) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 7}, "seed (0 in A, 7 in B)"),
        ({"sessions": [{"wpray_protocol": 2}]}, "wpray protocol (1 in A, 2 in B)"),
        ({"hosts": {"h": {"versions": {"mujoco": "9"}}}}, "mujoco ("),
    ],
)
def test_other_conditions_are_refused_unless_told(
    tmp_path: Path, changes: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", [[True]])
    write_run(tmp_path / "b", [[True]], policy="noop", **changes)
    argv = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert run_command(main, argv) == 2
    assert reason in capsys.readouterr().err
    assert run_command(main, [*argv, "--mix"]) == 0
    shown = capsys.readouterr()
    assert reason in shown.err and "| noop [2] |" in shown.out


def test_what_belongs_to_a_suite_may_differ_between_suites(study_runs: list[Run]) -> None:
    study_runs[1].info["outcome_fields"] |= {"env.max_steps": 600, "env.instruction": "bddl"}
    assert not mixed(study_runs[:2])
    assert len(mixed(study_runs)) == 1  # the other run on that suite has the suite's own limit
    assert "env.max_steps (600 in A, default in B)" in mixed(study_runs)[0]


def test_conditions_list_the_values_that_suites_of_a_run_have(study_runs: list[Run]) -> None:
    study_runs[0].info["outcome_fields"]["env.instruction"] = {"x": "base_file_name", "z": "bddl"}
    (conditions,) = (line for line in legend(tabulate(study_runs[:2])) if line.startswith("Conditions: "))
    assert "instructions base_file_name / bddl / file_name, " in conditions


def test_numbers_are_those_of_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.csv"
    argv = [str(RECORDED / "scripted"), str(RECORDED / "handicapped"), "--format", "csv", "-o", str(out)]
    assert run_command(main, argv) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [(row["policy"], row["suite"], row["successes"], row["best"]) for row in rows] == [
        ("scripted", "libero_object", "30", "true"),
        ("tests.results.policies.handicapped", "libero_object", "22", "false"),
    ]
    assert capsys.readouterr().out == ""


NASTY = ["a_b & c%", r"\x{$}#^~", "`p|q' <\"> -- ---", "\u03c00 \u4e2d\n%", "*bold* [1]"]


def _nasty(tmp_path: Path) -> list[Run]:
    return [_run(tmp_path / str(i), _solved((2, 8), 16 if i == 0 else 2)) for i in range(len(NASTY))]


def test_latex_is_read_by_a_parser(tmp_path: Path) -> None:
    from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

    text = latex(tabulate(_nasty(tmp_path), NASTY))
    nodes, _, length = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert length == len(text)
    assert [node.environmentname for node in nodes if isinstance(node, LatexEnvironmentNode)] == ["table"]
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == len(NASTY) and body[0].count("\\textbf") == 1
    assert all(line.replace("\\&", "").count("&") == 1 and line.endswith(r" \\") for line in body)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    text = latex(tabulate(_nasty(tmp_path), NASTY))
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(page)
    argv = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_and_markdown_keep_any_name(tmp_path: Path) -> None:
    study = tabulate(_nasty(tmp_path), NASTY)
    assert [row["policy"] for row in csv.DictReader(io.StringIO(comma_separated(study)))] == NASTY
    table = [line for line in markdown(study).splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(NASTY)
    assert {line.replace("\\|", "").count("|") for line in table} == {3}


@pytest.mark.parametrize("sizes", [(3, 30), (10, 10), (1, 50)])
@pytest.mark.parametrize("rates", [([0.5] * 5, [0.9] * 10), ([0.95] * 10, [0.05] * 10), ([0.9, 0.2], [0.97] * 9)])
def test_the_average_covers_what_it_should(rates: tuple[list[float], list[float]], sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sizes)
    truth = np.mean([np.mean(its) for its in rates])
    draws = [rng.binomial(n, its, size=(1500, len(its))) for n, its in zip(sizes, rates, strict=True)]
    found = [
        average([[(int(k), n) for k in row] for n, row in zip(sizes, pair, strict=True)])
        for pair in zip(*draws, strict=True)
    ]
    assert np.mean([rate.low <= truth <= rate.high for rate in found]) >= 0.925  # Wilson's own swings about 95%
    assert np.mean([rate.rate for rate in found]) == pytest.approx(truth, abs=0.01)


def test_the_average_of_equal_suites_is_the_stratified_rate() -> None:
    suites = [[(3, 5), (5, 5)], [(1, 5), (4, 5)]]
    assert average(suites) == stratified([(3, 5), (5, 5), (1, 5), (4, 5)])
    assert average([[(0, 3)], [(0, 10)]]).low == 0.0 < average([[(0, 3)], [(0, 10)]]).high < 0.5
    assert average([[(3, 3)], []]).trials == average([]).trials == 0


def test_a_latency_is_one_of_the_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, late in (("prompt", {}), ("late", {"latency": {"extra_ms": 120, "mode": "freeze"}})):
        config = Config.model_validate({"task_suite": "fake", "policy": "scripted", **late})
        write_run(tmp_path / name, [[True, False]], outcome_fields=outcome_fields(config))
    assert run_command(main, [str(tmp_path / "prompt")]) == 0
    assert "latency 1" not in capsys.readouterr().out
    assert run_command(main, [str(tmp_path / "late")]) == 0
    assert "latency 120 ms freeze." in capsys.readouterr().out
