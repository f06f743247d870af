"""Errors of attempts that were retried stay with the trial's row; metrics of an episode are in it, too."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.test_late_results import HOST, POLICY, TRIAL, _episode, _lost, _play
from tests.results.recorded import START, _result, write_run
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.orchestration.actors import Attempt
from wpray.orchestration.events import AttemptFinished, EnvReady
from wpray.orchestration.scheduler import Assignment
from wpray.report.page import write_report
from wpray.results import load
from wpray.results.encode import EpisodeContext, encode_episode, encode_error
from wpray.results.merge import merge
from wpray.results.summary import Tally, log_lines, retry_line
from wpray.results.writer import RunFolder
from wpray.types import AttemptError, Failure, Trial, TrialKey

ERRORS = (
    AttemptError(1, "env-3", Failure("policy", "FloatingPointError", "not a number", "Traceback <here>")),
    AttemptError(2, "env-4", Failure("actor", "ActorLostError", "the env actor died in attempt 2: hung")),
)


def _context(attempt: int, *errors: AttemptError) -> EpisodeContext:
    return EpisodeContext("run", "scripted", None, "wpray", "host", "env-0", attempt, START, START, errors)


def test_the_driver_hands_what_failed_to_the_next_attempt() -> None:
    start = [*POLICY, EnvReady("env-0", HOST)]
    first, second = Assignment(TRIAL, 1, "env-0"), Assignment(TRIAL, 2, "env-0")
    row = replace(_episode(error="E: boom"))
    failed = AttemptFinished(first, Attempt(row, Failure("policy", "E", "boom", "x" * 9999), 0, "incarnation"))
    script = [*start, failed, _lost("env-0"), EnvReady("env-1", HOST)]
    stage, _ = _play([*script, AttemptFinished(Assignment(TRIAL, 3, "env-1"), Attempt(_episode()))])
    assert [len(assignment.errors) for assignment in stage.submitted] == [0, 1, 2]
    one, two = stage.submitted[-1].errors
    assert (one.attempt, one.failure.origin, one.failure.kind, one.worker) == (1, "policy", "E", "env-0")
    assert one.failure.text.startswith("boom\nx") and len(one.failure.text) == 4000
    assert (two.attempt, two.failure.origin, two.failure.kind, two.worker) == (
        2,
        "actor",
        "ActorLostError",
        second.worker,
    )
    assert "the env actor died in attempt 2" in two.failure.text
    assert Assignment.of(stage.submitted[-1].plain()).errors == (one, two)


def test_they_are_on_the_row_of_an_outcome_and_of_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open()
    trials = [Trial(fake_tasks()[0], number, 0) for number in range(3)]
    folder.write_episodes(
        encode_episode(_result(trials[0], True, 30), _context(1), "none"),
        encode_episode(_result(trials[1], True, 30), _context(3, *ERRORS), "none"),
        encode_error(trials[2], _context(2, ERRORS[0]), Failure("policy", "E", "boom")),
    )
    assert [outcome.retried for outcome in folder.finished().values()] == [(), ("FloatingPointError", "ActorLostError")]
    merge(folder)
    rows = pq.read_table(tmp_path / "episodes.parquet")["attempt_errors"].to_pylist()
    assert rows[0] is None
    assert [error["attempt"] for error in rows[1]] == [1, 2] and rows[1][1]["origin"] == "actor"
    assert rows[2] == [ERRORS[0].as_row()]
    assert [outcome.retried for outcome in folder.finished().values()] == [(), ("FloatingPointError", "ActorLostError")]


def test_the_summary_counts_them() -> None:
    task = fake_tasks()[0]
    tally = Tally.planned([(task, 3)])
    for trial, retried in enumerate([(), ("A", "A"), ("B",)]):
        tally.add(TrialKey(task.suite, task.task_id, trial), "success", 30, retried)
    assert "2 trials needed a retry; most often because of A (2 of 3 failed attempts)" in log_lines(tally)
    assert log_lines(tally)[-1].startswith("Overall success rate: ")
    assert retry_line(1, Counter(["A"])).startswith("1 trial needed a retry")
    assert not any("retry" in line for line in log_lines(Tally.planned([(task, 3)])))


def test_the_report_shows_retries_and_metrics(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]], merged=False)
    folder = RunFolder(tmp_path)
    result = replace(_result(Trial(fake_tasks()[0], 2, 0), True, 40), metrics={"progress <x>": 0.75, "bumps": 3})
    folder.write_episodes(encode_episode(result, _context(3, *ERRORS), "none"))
    merge(folder)
    html = write_report(tmp_path).read_text()
    assert 'id="retries"' in html and "1 trial needed a retry; most often because of FloatingPointError" in html
    assert "task 0 trial 2 attempt 1" in html and "Traceback &lt;here&gt;" in html and "the policy, on env-3" in html
    assert 'id="metrics"' in html and "<th>progress &lt;x&gt;</th><td>1</td><td>0.75</td>" in html
    (metrics,) = [dict(row) for row in load(tmp_path).episodes["metrics"].to_pylist() if row]
    assert metrics == {"progress <x>": 0.75, "bumps": 3.0}
    write_run(tmp_path / "plain", [[True]])
    plain = write_report(tmp_path / "plain").read_text()
    assert 'id="retries"' not in plain and 'id="metrics"' not in plain


def test_other_programs_read_the_new_columns(tmp_path: Path) -> None:
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    folder = RunFolder(tmp_path)
    folder.open()
    result = replace(_result(Trial(fake_tasks()[0], 0, 0), True, 30), metrics={"progress": 0.5})
    folder.write_episodes(encode_episode(result, _context(3, *ERRORS), "none"))
    merge(folder)
    path = tmp_path / "episodes.parquet"
    found = duckdb.sql(f"SELECT metrics['progress'], len(attempt_errors) FROM '{path}'").fetchall()
    assert found in ([(0.5, 2)], [([0.5], 2)])  # of a map: by its version
    assert len(pandas.read_parquet(path)["attempt_errors"][0]) == 2
    assert len(polars.read_parquet(path)["attempt_errors"][0]) == 2
