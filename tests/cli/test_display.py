"""The live display and the log, without a run."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from rich.console import Console

from wpray.benchmarks.factory import list_tasks
from wpray.cli import display
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.types import Trial, TrialKey


def _episode(trial: Trial, status: str) -> EncodedEpisode:
    error = "ValueError: boom" if status == "error" else None
    return EncodedEpisode(trial.key, status, 128, 4.1, b"", None, error, (3.0, 1.0))  # type: ignore[arg-type]


def test_the_live_display_shows_progress_rates_rows_speed_and_utilisation(tmp_path: Path) -> None:
    tasks = list_tasks("fake")[:3]
    console = Console(force_terminal=True, width=130, height=40, file=io.StringIO(), record=True)
    tally = Tally.planned((task, 4) for task in tasks)
    with display.logging_to(tmp_path / "run.log", console), display.RunDisplay(console, tally, 1) as shown:
        for task, status in zip(tasks, ("success", "failure", "error"), strict=True):
            trial = Trial(task, 2, 0)
            tally.add(trial.key, status, 128)  # type: ignore[arg-type]
            shown.on_episode(trial, _episode(trial, status))
        shown.on_progress(policy_busy_s=0.5, num_workers=2)
        console.print(shown._render())
    text = console.export_text()
    assert "━" in text and "3/12" in text  # bar and count
    for word in ("elapsed", "left", "success 50.0%", "episodes/min", "2 envs busy 100%", "policy busy", "errors 1"):
        assert word in text
    for task in tasks:
        row = next(line for line in text.splitlines() if task.instruction in line)
        assert str(task.task_id) in row.split()
    assert "NaN" not in text and "nan" not in text
    log = (tmp_path / "run.log").read_text()
    assert "Task 0 move_the_cube_0 trial 2: SUCCESS in 128 steps (4.1 s)" in log
    assert "Task 1 move_the_cube_1 trial 2: FAIL in 128 steps" in log
    assert "Task 2 move_the_cube_2 trial 2: ERROR ValueError: boom" in log
    assert "SUCCESS" not in text  # a terminal has the display instead of the lines


def test_the_live_display_of_nothing_done_yet_is_readable() -> None:
    console = Console(force_terminal=True, width=100, file=io.StringIO(), record=True)
    shown = display.RunDisplay(console, Tally.planned([(list_tasks("fake")[0], 50)]), 1)
    console.print(shown._render())
    text = console.export_text()
    assert "success -" in text and "0/50" in text and "0 of 50" in text and "nan" not in text.lower()


def test_warnings_are_seen_on_a_terminal_and_the_log_is_left_as_it_was(tmp_path: Path) -> None:
    log, console = logging.getLogger("wpray"), Console(force_terminal=True, file=io.StringIO(), record=True)
    before = log.level, log.propagate, list(log.handlers)
    with display.logging_to(tmp_path / "run.log", console):
        log.info("quiet [red]line[/]")
        log.warning("env-3 is gone: [Errno 5]")
    assert (log.level, log.propagate, list(log.handlers)) == before
    assert console.export_text() == "env-3 is gone: [Errno 5]\n"
    assert "quiet [red]line[/]" in (tmp_path / "run.log").read_text()


def test_a_summary_s_numbers_are_consistent() -> None:
    tasks = list_tasks("fake")
    tally = Tally.planned((task, 3) for task in tasks)
    rng = np.random.default_rng(0)
    for task in tasks:
        for trial in range(3):
            tally.add(TrialKey("fake", task.task_id, trial), "success" if rng.random() < 0.7 else "failure", 100)
    console = Console(width=120, file=io.StringIO(), record=True)
    display.print_summary(console, tally, RunFolder(Path("out")), Path("out/report.html"))
    text = console.export_text()
    overall = tally.overall
    assert f"Success rate {overall.rate:.1%} ({overall.successes}/30), 95% interval" in text
    assert "Report with charts and videos: out/report.html" in text
    assert "Results in out" in text and "out/episodes.parquet" in text
