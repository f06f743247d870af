"""A run of a chunk policy, from the command to the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from wpray.compare import main as compare
from wpray.errors import BadInputError
from wpray.launch import main as launch
from wpray.results import load
from wpray.results.reader import Run
from wpray.results.schema import OUTCOME_COLUMNS

pytestmark = pytest.mark.ray
RUN = ["--task_suite", "fake", "--policy", "tests.policies.chunky:ChunkyPolicy", "--tasks", "0,1"]
RUN += ["--num_trials_per_task", "2", "--video.mode", "none"]


def _run(folder: Path, *more: str) -> Run:
    assert launch([*RUN, "--output_dir", str(folder), *more]) == 0
    return load(folder)


def test_a_chunk_policy_runs_from_the_command_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, three = (_run(tmp_path / str(count), "--num_parallel", str(count)) for count in (1, 3))
    assert one.episodes.select(OUTCOME_COLUMNS).equals(three.episodes.select(OUTCOME_COLUMNS))
    for key in (("fake", 0, 1), ("fake", 1, 0)):
        assert one.trajectory(key).equals(three.trajectory(key))
    _decisions_hold_chunks_and_nothing_else(three)
    metrics = [dict(row) for row in three.episodes["metrics"].to_pylist()]
    assert all(0 < row["largest"] <= 1 for row in metrics)
    page = (tmp_path / "3" / "report.html").read_text()
    assert ">largest<" in page and 'id="waypoints"' not in page
    assert "[replan" not in (tmp_path / "3" / "run.log").read_text()
    assert compare([str(tmp_path / "1"), str(tmp_path / "3")]) == 0
    assert "4 paired trials" in capsys.readouterr().out


def test_latency_passes_and_is_recorded_and_no_other_run_mixes_with_it(tmp_path: Path) -> None:
    late = _run(tmp_path / "late", "--latency.extra_ms", "101", "--env.max_steps", "40", "--num_parallel", "1")
    assert late.info["latency_steps"] == 3
    assert late.info["outcome_fields"]["latency.extra_ms"] == 101
    assert "takes effect 3 control steps after its observation (latency: 101 ms, hold)" in _log(tmp_path / "late")
    page = (tmp_path / "late" / "report.html").read_text()
    assert "<tr><th>latency</th><td>101 ms, 3 control steps (hold)</td></tr>" in page
    rows = late.decisions.to_pylist()
    assert {row["latency_steps"] for row in rows} <= {1, 2, 3}
    for key, steps in zip(((0, 0), (0, 1), (1, 0), (1, 1)), late.episodes["num_steps"].to_pylist(), strict=True):
        own = [row for row in rows if _key(row) == key]
        assert 10 + sum(row["latency_steps"] + row["steps_executed"] for row in own) == steps
        assert late.trajectory(("fake", *key)).num_rows == steps
    with pytest.raises(BadInputError, match=r"differs in: latency\.mode \('hold' there, 'freeze' here\)"):
        _run(tmp_path / "late", "--latency.extra_ms", "101", "--latency.mode", "freeze", "--env.max_steps", "40")


def _log(folder: Path) -> str:
    return (folder / "run.log").read_text()


def _decisions_hold_chunks_and_nothing_else(run: Run) -> None:
    rows = run.decisions.to_pylist()
    assert {row["kind"] for row in rows} == {"chunk"} and {row["duration"] for row in rows} == {8}
    for column in ("plan_index", "segment_index", "waypoints", "durations", "waypoint_index"):
        assert {row[column] for row in rows} == {None}
    for episode in run.episodes.to_pylist():
        own = [row["chunk_index"] for row in rows if (row["task_id"], row["trial"]) == _key(episode)]
        assert own == list(range(episode["num_chunks"])) and len(own) > 1
        assert (episode["num_plans"], episode["num_segments"]) == (0, 0)


def _key(row: dict[str, int]) -> tuple[int, int]:
    return row["task_id"], row["trial"]


def test_what_a_chunk_policy_raises_stops_the_run_and_keeps_its_rows(tmp_path: Path) -> None:
    from wpray.errors import RunStoppedError

    with pytest.raises(RunStoppedError, match="ArithmeticError: not this one"):
        launch([*RUN, "--output_dir", str(tmp_path / "run"), "--num_parallel", "1", "--policy_args.fails_on", "1"])
    rows = load(tmp_path / "run").episodes.to_pylist()
    # One trial or both that it fails on: the second may have failed before the run stops.
    assert {row["error_type"] for row in rows if row["status"] == "error"} == {"ArithmeticError"}
    assert all(row["num_chunks"] is None for row in rows if row["status"] == "error")
