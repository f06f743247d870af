"""End of a run: run.json's state, the report and the exit code, also after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.results.recorded import read_json, write_run
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.config import Config
from wpray.errors import RunStoppedError
from wpray.orchestration.stop_rules import Stop
from wpray.policies.drawing import drawing_place
from wpray.policies.factory import policy_spec
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.run import evaluation
from wpray.run.output import RunInfo
from wpray.types import TrialKey

CONFIG = Config.model_validate({"task_suite": "fake", "num_trials_per_task": 2, "tasks": [0]})
INTERRUPTED = Stop("interrupted")


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Return the folders whose videos were to be rendered."""
    asked: list[Path] = []
    monkeypatch.setattr(evaluation, "videos_after_run", lambda config, folder, console: asked.append(folder.path))
    yield asked


def _run(path: Path, outcomes: list[bool | None]) -> evaluation._Run:
    write_run(path, [outcomes])
    folder = RunFolder(path)
    tally = Tally.planned([(fake_tasks()[0], 2)])
    for trial, success in enumerate(outcomes):
        tally.add(TrialKey("fake", 0, trial), "error" if success is None else "success" if success else "failure", 40)
    info = RunInfo.read_or_new(CONFIG, folder, "run", {"planned_episodes": 2})
    spec = policy_spec(CONFIG)
    drawing = drawing_place(CONFIG, spec, gpus=0)
    return evaluation._Run(CONFIG, spec, folder, (), tally, info, evaluation.CallerParts(), drawing)


def _state(path: Path) -> tuple[str, str | None]:
    info = read_json(path / "run.json")
    return info["state"], info["stop_reason"]


def test_an_interruption_while_the_last_episodes_end_costs_the_videos_and_says_so(
    tmp_path: Path, videos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = _run(tmp_path / "run", [True, False])
    with caplog.at_level(logging.WARNING, "wpray"):
        assert evaluation._finish(run, INTERRUPTED, Console(quiet=True)) == 0
    assert _state(tmp_path / "run") == ("finished", None)
    assert "The run stopped" not in (tmp_path / "run" / "report.html").read_text()
    assert not videos
    assert [record.getMessage() for record in caplog.records] == [
        f"interrupted: videos left out; python -m wpray.video {tmp_path / 'run'} renders them later"
    ]


@pytest.mark.parametrize("where", ["videos_after_run", "write_report"])
def test_an_interruption_after_the_episodes_leaves_their_results_and_the_exit_code(
    tmp_path: Path, where: str, videos: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, where, interrupt)
    run = _run(tmp_path / "run", [True, False])
    with caplog.at_level(logging.WARNING, "wpray"):
        assert evaluation._finish(run, None, Console(quiet=True)) == 0
    assert _state(tmp_path / "run") == ("finished", None)
    assert "report left out" in caplog.text


def test_an_interruption_before_the_last_episode_is_one(tmp_path: Path, videos: list[Path]) -> None:
    run = _run(tmp_path / "run", [True])
    with pytest.raises(RunStoppedError, match="interrupted"):
        evaluation._finish(run, INTERRUPTED, Console(quiet=True))
    assert _state(tmp_path / "run") == ("stopped", "interrupted")
    assert "The run stopped before its last episode: interrupted" in (tmp_path / "run" / "report.html").read_text()
    assert not videos


def test_a_run_that_stops_for_its_errors_keeps_that_reason_whatever_has_run(tmp_path: Path, videos: list[Path]) -> None:
    run = _run(tmp_path / "run", [True, None])
    with pytest.raises(RunStoppedError, match="1 of 2 episodes"):
        evaluation._finish(run, Stop("1 of 2 episodes ended in an error"), Console(quiet=True))
    assert _state(tmp_path / "run") == ("stopped", "1 of 2 episodes ended in an error")
    assert "The run stopped: 1 of 2" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_without_a_stop_renders_its_videos(tmp_path: Path, videos: list[Path]) -> None:
    assert evaluation._finish(_run(tmp_path / "run", [True, True]), None, Console(quiet=True)) == 0
    assert videos == [tmp_path / "run"]
