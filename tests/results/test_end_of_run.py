"""Real runs on Ray: a handicapped policy is found out by the comparison; videos and report are there at the end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.results.policies import handicapped
from wpray import compare
from wpray.cli.command import run_command
from wpray.launch import main as launch
from wpray.results import Run, load
from wpray.types import Task, Trial

pytestmark = pytest.mark.ray
_RUN = ["--task_suite", "fake", "--num_trials_per_task", "20", "--num_parallel", "2"]


def _evaluate(path: Path, *more: str) -> Run:
    assert run_command(launch, [*_RUN, "--output_dir", str(path), *more]) == 0
    return load(path)


@pytest.mark.slow
def test_a_seeded_handicap_is_found_with_the_right_p_value(tmp_path: Path) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    a = _evaluate(tmp_path / "a", "--video.mode", "none")
    policy = "tests.results.policies.handicapped"
    b = _evaluate(tmp_path / "b", "--policy", policy, "--video.mode", "failures", "--video.max_count", "2")
    numbers = tmp_path / "numbers.json"
    assert run_command(compare.main, [str(a.path), str(b.path), "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    hit = [_is_hit(task_id, trial) for task_id in range(10) for trial in range(20)]
    assert b.episodes["success"].to_pylist() == [not x for x in hit]
    table = [[200 - sum(hit), sum(hit)], [0, 0]]
    assert found["mcnemar_p"] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert found["mcnemar_p"] < 0.001 and found["difference"] == pytest.approx(-np.mean(hit))
    _videos_and_report_are_there(a, b)


def _is_hit(task_id: int, trial: int) -> bool:
    return handicapped.is_handicapped(Trial(Task("fake", task_id, "", "", 50, 120), trial, 0))


def _videos_and_report_are_there(a: Run, b: Run) -> None:
    paths = [path for path in b.episodes["video_path"].to_pylist() if path]
    assert len(paths) == 2 and all((b.path / path).stat().st_size > 0 for path in paths)
    assert all(path.endswith("_failure.mp4") for path in paths)
    assert not any(a.episodes["video_path"].to_pylist())
    assert (b.path / "report.html").read_text().count("<video") == 2
    last = (b.path / "run.log").read_text().splitlines()[-1]
    assert "Overall success rate" in last


def test_videos_that_are_missing_are_rendered_by_the_same_command(tmp_path: Path) -> None:
    short = ("--tasks", "0", "--num_trials_per_task", "1", "--num_parallel", "1")
    run = _evaluate(tmp_path / "run", *short)
    video = run.path / run.episodes["video_path"][0].as_py()
    video.unlink()
    assert _evaluate(run.path, *short).episodes["video_path"][0].as_py() is not None
    assert video.exists()
    video.unlink()
    assert _evaluate(run.path, *short, "--video.mode", "none").episodes["video_path"][0].as_py() is None


def test_a_run_that_is_decided_stops_with_as_many_trials_of_every_task(tmp_path: Path) -> None:
    run = _evaluate(tmp_path / "run", "--stop_when.reference_rate", "0.5", "--video.mode", "none")
    each = Counter(run.episodes["task_id"].to_pylist())
    assert len(each) == 10 and len(set(each.values())) == 1
    assert run.episodes.num_rows < 200 and run.info["state"] == "finished"
    assert "is better than the reference rate 50.0%" in run.info["stop_reason"]
    assert f"{run.episodes.num_rows} of 200 episodes have run" in (run.path / "report.html").read_text()
