"""Whole runs of `policy: openpi`: rows, log and run.json, with servers that fail on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.servers import openpi_server
from wpray.launch import main as launch
from wpray.results import load
from wpray.results.schema import OUTCOME_COLUMNS
from wpray.system.hardware import cores

pytestmark = pytest.mark.ray
RUN = ["--task_suite", "fake", "--policy", "openpi", "--tasks", "0,1", "--num_trials_per_task", "3"]
RUN += ["--video.mode", "none"]


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return actions that depend on what was seen alone."""
    seen = np.append(question["observation/state"], question["observation/image"].mean() / 255)
    rng = np.random.default_rng(np.abs(1e6 * seen).astype(np.int64))
    return {"actions": np.clip(rng.normal(0, 0.5, (10, 7)), -1, 1)}


def _run(folder: Path, url: str, *more: str) -> Any:
    code = launch([*RUN, "--output_dir", str(folder), "--policy_args.url", url, *more])
    return code, load(folder)


def test_outcomes_are_the_same_however_many_servers_and_actors_there_are(tmp_path: Path) -> None:
    with openpi_server(_answer, {"checkpoint": "toy"}) as one, openpi_server(_answer, {"checkpoint": "toy"}) as two:
        code, alone = _run(tmp_path / "1", one, "--num_parallel", "1")
        other_code, many = _run(tmp_path / "3", f"{one},{two}", "--num_parallel", "3")
        _, chosen = _run(tmp_path / "auto", one, "--policy_args.connections", "9")
    assert code == other_code == 0
    for other in (many, chosen):
        assert alone.episodes.select(OUTCOME_COLUMNS).equals(other.episodes.select(OUTCOME_COLUMNS))
    suits = max(cores(), min(int(3.5 * cores()), 18))
    log = (tmp_path / "auto" / "run.log").read_text()
    assert f"ray.num_env_actors auto: at most {suits} on {cores()} cores, because" in log
    assert f"6 episodes, {min(6, suits)} env actors" in log
    assert {row["duration"] for row in many.decisions.to_pylist()} <= {1, 2, 3, 4, 5}
    record, log = json.loads((tmp_path / "3" / "run.json").read_text()), (tmp_path / "3" / "run.log").read_text()
    assert record["policy_sources"]["servers"] == {url: {"checkpoint": "toy"} for url in (one, two)}
    assert "executed as they come" in record["policy_sources"]["conventions"]["actions"]
    assert "executed: 5 actions of a chunk" in log


def test_a_server_that_closes_talks_nonsense_and_stays_away_costs_no_episode(tmp_path: Path) -> None:
    asked = threading.Semaphore(0)
    count = iter(range(10_000))

    def faulty(question: Mapping[str, Any]) -> Any:
        asked.release()
        match next(count):
            case 5:
                raise ConnectionAbortedError
            case 9:
                return b"\xc1nonsense"
            case 13:
                return b"\x93\x01\x02\x03"
        return _answer(question)

    with openpi_server(_answer) as sound:
        _, expected = _run(tmp_path / "sound", sound, "--num_parallel", "2")
    port, log_file = int(sound.rpartition(":")[2]), tmp_path / "faulty" / "run.log"
    more = ["--output_dir", str(log_file.parent), "--policy_args.url", sound, "--num_parallel", "2"]
    running = subprocess.Popen([sys.executable, "-m", "wpray.launch", *RUN, *more], stdout=subprocess.DEVNULL)
    while not (log_file.exists() and "Connection refused" in log_file.read_text()):  # no server is there yet
        assert running.poll() is None
        time.sleep(0.2)
    with openpi_server(faulty, port=port):
        for _ in range(30):
            assert asked.acquire(timeout=60)
    time.sleep(1)  # it has gone in the middle of the run
    with openpi_server(_answer, port=port):
        assert running.wait(120) == 0
    run = load(log_file.parent)
    assert run.episodes.select(OUTCOME_COLUMNS).equals(expected.episodes.select(OUTCOME_COLUMNS))
    assert {row["attempt"] for row in run.episodes.to_pylist()} == {1}
    log = log_file.read_text()
    assert "Connection refused" in log and "answers nonsense" in log and "answers again, after" in log


def test_a_servers_own_error_is_the_row_of_its_trial(tmp_path: Path) -> None:
    def fails_on_task_1(question: Mapping[str, Any]) -> Any:
        if question["prompt"].endswith("1"):
            return "Traceback (most recent call last):\n  File 'x'\nKeyError: 'image'"
        return _answer(question)

    with openpi_server(fails_on_task_1) as url:
        code, run = _run(tmp_path / "run", url, "--num_parallel", "2", "--tasks", "0-4", "--num_trials_per_task", "1")
    assert code == 1
    rows = run.episodes.to_pylist()
    errors = [row for row in rows if row["status"] == "error"]
    assert len(rows) == 5 and [row["task_id"] for row in errors] == [1]
    assert all(
        row["error_type"] == "InvalidRequestError" and "KeyError: 'image'" in row["error_message"] for row in errors
    )
    assert {row["attempt"] for row in errors} == {1}
