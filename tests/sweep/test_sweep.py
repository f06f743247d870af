"""`python -m wpray.sweep` on real Ray: one folder of normal runs, scenes that stay compiled, kills, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.faults.runs import ROOT, Run, outcomes
from tests.sweep.step_policy import has_learned, write_checkpoints
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.cli.command import run_command
from wpray.results import load
from wpray.sweep.__main__ import main
from wpray.types import Trial

SKILLS: dict[int, float | str] = {1000: 0.5, 200: 0.1, 5000: 0.9}
STEPS = sorted(SKILLS)
POLICY = ("--policy", "tests.sweep.step_policy", "--benchmark", "tests.sweep.counting:Counting")
FAKE = ("--task_suite", "fake", *POLICY, "--tasks", "0,1", "--num_trials_per_task", "4", "--num_parallel", "1")


def _argv(root: Path, out: str, *options: str) -> list[str]:
    return [*FAKE, "--vlm_checkpoint", f"{root}/run/*/vlm", "--output_dir", str(root / out), *options]


@contextmanager
def _launched(root: Path, out: str, *options: str, **environ: str) -> Iterator[Run]:
    said = root / f"{out}.txt"
    argv = [sys.executable, "-m", "wpray.sweep", *_argv(root, out, *options)]
    counts = {"WPRAY_TEST_COMPILES": str(root / f"{out}.compiles"), "WPRAY_TEST_LOADS": str(root / f"{out}.loads")}
    with said.open("ab") as file:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **counts, **environ}
        process = subprocess.Popen(argv, stdout=file, stderr=file, cwd=root, env=env, start_new_session=True)
    run = Run(process, root / out, said)
    try:
        yield run
    finally:
        run.kill()


def _run_of(out: Path, step: int) -> Path:
    return next((out / "runs").glob(f"step_{step}_vlm-*"))


def _parts(out: Path, step: int) -> int:
    return len(list((out / "runs").glob(f"step_{step}_vlm-*/parts/*/*.parquet")))


def _tables(out: Path) -> list[list[dict[str, Any]]]:
    """Both tables, without the runs' random names."""
    rates, pairs = (pq.read_table(out / name) for name in ("sweep.parquet", "pairs.parquet"))
    return [rates.drop_columns(["run_id"]).to_pylist(), pairs.to_pylist()]


def _lines(path: Path) -> list[Sequence[str]]:
    return [line.split() for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of three checkpoints, and the undisturbed sweep of it in `out`.

    A checkpoint ends its tasks only once the next one has begun to load.
    """
    root = tmp_path_factory.mktemp("sweep")
    write_checkpoints(root / "run", SKILLS)
    with _launched(root, "out", WPRAY_TEST_AHEAD="step_200:step_1000,step_1000:step_5000") as run:
        assert run.end() == 0, run.text[-3000:]
    return root


@pytest.mark.ray
def test_a_sweep_leaves_a_normal_run_for_each_checkpoint(root: Path) -> None:
    for step in STEPS:
        run = load(_run_of(root / "out", step))
        assert run.info["state"] == "finished"
        rows = run.episodes.select(["task_id", "trial", "success"]).to_pylist()
        expected = {
            (task.task_id, trial): has_learned(Trial(task, trial, 0), float(SKILLS[step]))
            for task in fake_tasks()[:2]
            for trial in range(4)
        }
        assert {(row["task_id"], row["trial"]): row["success"] for row in rows} == expected
        assert (run.path / "report.html").exists()
    rates = _tables(root / "out")[0]
    assert [row["step"] for row in rates if row["suite"] is None] == STEPS
    info = json.loads((root / "out" / "sweep.json").read_text())
    assert info["state"] == "finished" and [one["reason"] for one in info["checkpoints"]] == [None] * 3
    assert "training step" in (root / "out" / "report.html").read_text()


@pytest.mark.ray
def test_the_scene_stays_compiled_and_the_next_checkpoint_loads_ahead(root: Path) -> None:
    compiles = _lines(root / "out.compiles")
    assert len({pid for pid, _ in compiles}) == 1
    assert len(compiles) == 2 + 1 + 1  # the scene of the last task serves the next checkpoint, too
    assert _lines(root / "out.loads") == [[f"step_{step}"] for step in STEPS]


@pytest.mark.ray
def test_a_sweep_that_was_killed_goes_on_and_equals_an_undisturbed_one(root: Path) -> None:
    with _launched(root, "killed", WPRAY_TEST_PAUSE="0.1") as run:
        assert run.wait_for(lambda: _parts(run.folder, 1000) >= 2), run.text[-3000:]
        run.kill()
    assert 0 < _parts(run.folder, 1000) < 8
    ended = _run_of(run.folder, 200) / "run.json"
    before = ended.read_bytes()
    with _launched(root, "killed") as run:
        assert run.end() == 0, run.text[-3000:]
    assert ended.read_bytes() == before  # a finished run is not run again
    assert _tables(run.folder) == _tables(root / "out")
    for step in STEPS:
        here, there = _run_of(run.folder, step), _run_of(root / "out", step)
        assert outcomes(here) == outcomes(there)
        for path in sorted((there / "trajectories").iterdir()):
            assert (here / "trajectories" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.ray
@pytest.mark.faults
def test_ctrl_c_finishes_the_current_trials_and_a_checkpoint_that_fails_does_not_end_the_others(root: Path) -> None:
    write_checkpoints(root / "other", {1: "broken", 2: 0.9})
    options = ("--vlm_checkpoint", f"{root}/other/*/vlm")
    argv = [*FAKE, *options, "--output_dir", str(root / "failing")]
    environ = {"WPRAY_TEST_COMPILES": str(root / "failing.compiles"), "WPRAY_TEST_PAUSE": "0.1"}
    command = [sys.executable, "-m", "wpray.sweep", *argv]
    with (root / "failing.txt").open("wb") as file:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=root, env=env, start_new_session=True)
    run = Run(process, root / "failing", root / "failing.txt")
    try:
        assert run.wait_for(lambda: _parts(run.folder, 2) >= 1), run.text[-3000:]
        os.kill(process.pid, signal.SIGINT)
        assert run.end() == 1
    finally:
        run.kill()
    assert "stopped: interrupted (the same command goes on where this stopped)" in run.text
    info = json.loads((run.folder / "sweep.json").read_text())
    assert info["state"] == "stopped"
    assert [one["reason"] for one in info["checkpoints"]] == [
        *(f"vlm_checkpoint: {root}/other/step_1/vlm/skill is broken; copy it again", "stopped")
    ]
    trials = [row for row in _tables(run.folder)[0] if row["suite"] is None]
    assert [row["step"] for row in trials] == [2] and 0 < trials[0]["trials"] < 8


def test_a_plan_lists_what_would_run_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_argv(root, "planned", "--plan")) == 0
    assert "3 checkpoints, 24 episodes to run" in capsys.readouterr().out
    assert not (root / "planned").exists()
    assert main(_argv(root, "out", "--plan")) == 0
    assert "3 checkpoints, 0 episodes to run" in capsys.readouterr().out


REFUSED = [
    (["--vlm_checkpoint", "nowhere/*/vlm"], "vlm_checkpoint: nowhere/*/vlm matches nothing; quote a pattern"),
    (["--vlm_checkpoint", "one"], "nothing to sweep"),
    (["--vlm_checkpoint"], "argument --vlm_checkpoint: expected at least one path"),
    (["--vlm_checkpoint", "a", "b", "--vlm_checkpoint", "c"], "argument --vlm_checkpoint: is given twice"),
    (["--vlm_checkpoint", "a", "b", "--ray.submit", "http://head:8265"], "ray.submit: a sweep runs its driver here"),
    (["--vlm_checkpoint", "a", "b", "--video_out_path", "x"], "video_out_path: every run of a sweep"),
    (["--vlm_checkpoint", "a", "b", "--output_dir", "s3://bucket/x"], "is in a store"),
    (["--vlm_checkpoint", "a", "b", "--output_dir", "RUN"], "holds files but no sweep.json"),
    (["--vlm_checkpoint", "a", "b", "--output_dir", "OUT"], "holds another sweep, which differs in: "),
    (["--vlm_checkpoint", "a", "b", "--resume", "only", "--output_dir", "new"], "resume only: new holds no sweep"),
    (["--vlm_checkpoint", "a", "b", "--policy", "nop"], "policy"),
    (["--vlm_checkpoint", "a", "b", "--tasks", "10"], "no task 10"),
    (["--vlm_checkpoint", "a", "b", "--policy", "waypoint_vla"], "policy waypoint_vla needs ae_checkpoint"),
]


@pytest.mark.parametrize(("argv", "reason"), REFUSED)
def test_wrong_input_is_one_line(
    argv: list[str], reason: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("WPRAY_TEST_COMPILES", str(root / "none"))
    places = {"RUN": str(_run_of(root / "out", 200)), "OUT": str(root / "out")}
    before = sorted(root.rglob("*"))
    policy = () if "--policy" in argv else POLICY
    assert run_command(main, ["--task_suite", "fake", *policy, *(places.get(word, word) for word in argv)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and reason in said[0]
    assert sorted(root.rglob("*")) == before
