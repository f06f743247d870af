"""Existing monitoring, `tail -f run.log | grep -E "Task|SUCCESS|FAIL|Overall"`, follows a run as it did."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

_PATTERN = "Task|SUCCESS|FAIL|Overall"
_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the monitoring printed while the run went on."""
    folder = tmp_path_factory.mktemp("monitored")
    log, seen = folder / "run.log", folder.parent / "monitoring.txt"
    options = ["--task_suite", "fake", "--policy", "scripted", "--tasks", "0-1", "--num_trials_per_task", "2"]
    command = [sys.executable, "-m", "wpray.launch", *options, "--output_dir", str(folder), "--num_parallel", "1"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(log)
    with seen.open("wb") as output:
        tail = subprocess.Popen(["tail", "-n", "+1", "-f", str(log)], stdout=subprocess.PIPE)
        grep = subprocess.Popen(["grep", "--line-buffered", "-E", _PATTERN], stdin=tail.stdout, stdout=output)
        assert run.wait(timeout=120) == 0
        time.sleep(1.5)  # tail looks once a second
        tail.terminate()
        tail.wait()
        grep.wait()
    return seen.read_text().splitlines()


@pytest.mark.ray
def test_each_episode_has_one_line(followed: list[str]) -> None:
    episode = re.compile(_STAMP + r"Task \d+ \w+ trial \d+: (SUCCESS|FAIL) in \d+ steps \(\d+\.\d s\)$")
    lines = [line for line in followed if re.search(r"SUCCESS|FAIL", line)]
    assert len(lines) == 4
    assert all(episode.match(line) for line in lines), lines


@pytest.mark.ray
def test_replans_come_before_their_episode(followed: list[str]) -> None:
    replan = re.compile(
        _STAMP + r"(Task \d+ \w+ trial \d+) \[replan 1\] scripted: 7 waypoints, durations \[.*\], step 10"
    )
    first = next(index for index, line in enumerate(followed) if replan.match(line))
    assert any("SUCCESS" in line or "FAIL" in line for line in followed[first:])
    assert sum("[replan 1]" in line for line in followed) == 4


@pytest.mark.ray
def test_the_closing_lines_are_a_line_a_task_and_the_overall_rate(followed: list[str]) -> None:
    closing = followed[-3:]
    for number, line in enumerate(closing[:2]):
        assert re.match(_STAMP + rf"Task {number} \w+: \d+\.\d\d% \(\d/2\)$", line), line
    assert re.match(_STAMP + r"Overall success rate: \d+\.\d\d% \(\d/4\)$", closing[2])


@pytest.mark.ray
def test_a_models_load_time_is_logged(followed: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    log = next(tmp_path_factory.getbasetemp().glob("monitored*/run.log"))
    assert re.search(r"loaded in \d+\.\d s", log.read_text())
