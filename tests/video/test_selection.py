"""Which episodes get a video, and which frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wpray.types import Task
from wpray.video.frames import VideoJob, caption, select_steps
from wpray.video.selection import Mode, select_episodes

OUTCOMES = ["ssf", "sss", "fff", "esf"]  # a task each: success, failure, error
ROWS: list[dict[str, Any]] = [
    {"suite": "fake", "task_id": task, "trial": trial, "status": {"s": "success", "f": "failure", "e": "error"}[letter]}
    for task, letters in enumerate(OUTCOMES)
    for trial, letter in enumerate(letters)
]


@pytest.mark.parametrize(
    ("mode", "max_count", "expected"),
    [
        ("none", 20, []),
        ("failures", 20, ["0.2", "2.0", "2.1", "2.2", "3.2"]),
        ("failures", 3, ["0.2", "2.0", "3.2"]),  # every task's first failure
        ("sample", 20, ["0.0", "0.2", "1.0", "2.0", "3.1", "3.2"]),
        ("sample", 4, ["0.0", "0.2", "2.0", "3.2"]),  # failures, then successes
        ("all", None, ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "3.1", "3.2"]),
        ("all", 0, []),
    ],
)
def test_modes(mode: Mode, max_count: int | None, expected: list[str]) -> None:
    assert [f"{row['task_id']}.{row['trial']}" for row in select_episodes(ROWS[::-1], mode, max_count)] == expected


def test_the_last_step_is_always_shown() -> None:
    assert select_steps(7, 3) == [0, 3, 6]
    assert select_steps(6, 3) == [0, 3, 5]
    assert select_steps(1, 10) == [0]
    assert select_steps(0, 2) == []


def test_captions_name_step_waypoint_and_outcome() -> None:
    job = VideoJob(Task("s", 0, "t", "i", 1, 1), 0, "failure", "n", Path("t"), ((10, 0), (29, 2)), ())
    assert caption(job, 5, 119) == "step 6/119  failure"
    assert caption(job, 10, 119) == "step 11/119  waypoint 1  failure"
    assert caption(job, 118, 119) == "step 119/119  waypoint 3  failure"
