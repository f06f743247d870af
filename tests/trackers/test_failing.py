"""A tracker that raises, hangs, dies or is not there costs a warning, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.results.recorded import write_run
from wpray import launch
from wpray.cli.command import run_command
from wpray.results import load
from wpray.trackers import process as process_module
from wpray.trackers.process import TrackerProcess

BROKEN = "tests.trackers.broken"
TABLE: dict[str, Any] = {"columns": ["suite"], "rows": [["fake"]]}


def _begin(folder: Path) -> dict[str, Any]:
    return {"run_id": "abc", "name": "name", "project": "mine", "folder": str(folder), "config": {}}


def _track(folder: Path, tracker: str, points: int = 3, end_s: float = 60.0) -> list[str]:
    """Let a tracker see a run of some points; return what it noted."""
    process = TrackerProcess(tracker, folder, end_s)
    process.send("begin", _begin(folder))
    for episodes in range(points):
        process.send("rates", {"episodes": episodes, "metrics": {"success_rate": 0.5}})
    process.close({"state": "finished", "table": TABLE})
    assert process._process.poll() is not None
    assert not any(thread.is_alive() for thread in process._threads)
    calls = folder / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", [[True, False]])
    (tmp_path / "run" / "report.html").write_text("<p>")
    return tmp_path / "run"


def test_one_that_works_gets_everything_in_order(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    rates = [f"rates {episodes} 0.5" for episodes in range(3)]
    assert _track(run, f"{BROKEN}:Files") == ["begin abc mine", *rates, "table 1", "report report.html", "end finished"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "warnings", "ends"),
    [
        ("RaisesAtOnce", ["starting the run failed (ConnectionError: no network)"], False),
        ("RaisesOften", ["sending rates failed (ConnectionError: no network)"], True),
        ("Exits", ["sending rates failed (SystemExit: 3)"], True),
        ("Dies", ["ended with exit code 3"], False),
        ("NotThere", ["starting the run failed (BadInputError: track: tests.trackers.broken has no NotThere)"], False),
        ("Prints", [], True),
    ],
)
def test_what_fails_is_one_warning(
    run: Path, caplog: pytest.LogCaptureFixture, name: str, warnings: list[str], ends: bool
) -> None:
    calls = _track(run, f"{BROKEN}:{name}")
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(": ", 2)[2].rpartition("; the run")[0] for line in said] == warnings
    assert ("end finished" in calls) is ends
    if name == "Prints":
        assert "welcome" in (run / "tracker.log").read_text()


def test_one_that_hangs_blocks_nothing_and_is_ended(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = _track(run, f"{BROKEN}:Hangs", points=20_000, end_s=5.0)  # more than queue and pipe hold
    assert calls == ["begin abc mine"]
    assert "has not finished within 5 s and was ended" in caplog.text


@pytest.mark.ray
def test_a_run_with_one_that_hangs_is_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "END_S", 3.0)
    output = run.parent / "tracked"
    argv = ["--task_suite", "fake", "--tasks", "0-1", "--video.mode", "none", "--output_dir", str(output)]
    assert run_command(launch.main, [*argv, "--track", f"{BROKEN}:Hangs"]) == 0
    assert load(output).info["state"] == "finished" and len(load(output).episodes) == 2
    assert "Hangs: has not finished within 3 s" in (output / "run.log").read_text()
    # The same command without episodes to run sends the results again, to any tracker.
    assert run_command(launch.main, [*argv, "--track", f"{BROKEN}:Files", "--track_project", "mine"]) == 0
    run_id = load(output).info["run_id"]
    assert (output / "calls").read_text().splitlines()[-5:] == [
        f"begin {run_id} mine",
        "rates 2 1.0",
        "table 2",
        "report report.html",
        "end finished",
    ]


def test_one_whose_run_was_killed_ends_by_itself(run: Path) -> None:
    begin = json.dumps({"kind": "begin", **_begin(run)})
    command = [sys.executable, "-m", "wpray.trackers.worker", f"{BROKEN}:Files"]
    done = subprocess.run(command, input=f"{begin}\n", text=True, capture_output=True, timeout=120, check=True)
    assert (run / "calls").read_text().splitlines() == ["begin abc mine", "end running"] and done.stdout == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandb", "wandb needs the package wandb, which is not installed; run: pip install 'wpray[wandb]'"),
        (
            "tensorboard",
            "needs the package tensorboardX, which is not installed; run: pip install 'wpray[tensorboard]'",
        ),
        ("wandbb", "unknown track 'wandbb'; did you mean wandb?"),
        (f"{BROKEN}:Filess", "has no Filess; did you mean Files?"),
    ],
)
def test_what_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    monkeypatch.setattr("wpray.trackers.factory.find_spec", lambda package: None)
    output = tmp_path / "run"
    assert run_command(launch.main, ["--task_suite", "fake", "--track", name, "--output_dir", str(output)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not output.exists()
