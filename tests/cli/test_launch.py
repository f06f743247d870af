"""`python -m wpray.launch` for a person: Ctrl-C, resuming, plain lines and the live display."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wpray.launch import main

ROOT = Path(__file__).parents[2]
FAKE = ["--task_suite", "fake", "--video.mode", "none"]
pytestmark = pytest.mark.ray
EPISODE = re.compile(r"Task \d+ \S+ trial \d+: (SUCCESS|FAIL) in \d+ steps \(\d+\.\d s\)")


class Launch:
    """Run in its own process group, which a terminal's Ctrl-C reaches."""

    def __init__(self, folder: Path, *argv: str) -> None:
        command = [sys.executable, "-m", "wpray.launch", *FAKE, "--policy", "tests.gated_policy", *argv]
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*command, "--num_trials_per_task", "2", "--output_dir", str(folder / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=_environ(folder),
            start_new_session=True,
        )

    def read_until(self, found: Callable[[list[str]], bool]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found(self.lines):
                return
        raise AssertionError("\n".join(self.lines))

    def ctrl_c(self) -> None:
        os.killpg(self._process.pid, signal.SIGINT)

    def finish(self) -> int:
        assert self._process.stdout is not None
        # Not by communicate: it reads past the buffer, in which lines that came with the last one read are waiting.
        self.lines += [line.rstrip("\n") for line in self._process.stdout]
        return self._process.wait(timeout=120)

    @property
    def episodes(self) -> list[str]:
        return [line for line in self.lines if EPISODE.fullmatch(line)]


def _environ(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "WPRAY_TEST_GATE": str(folder / "gate")}


def _after_episodes(count: int) -> Callable[[list[str]], bool]:
    return lambda lines: sum(EPISODE.fullmatch(line) is not None for line in lines) == count


def _says(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: text in lines[-1]


def _rows(folder: Path) -> list[tuple[int, int]]:
    table = pq.read_table(folder / "out" / "episodes.parquet", columns=["task_id", "trial"])
    return list(zip(table["task_id"].to_pylist(), table["trial"].to_pylist(), strict=True))


def _attempts(folder: Path) -> dict[tuple[int, int], object]:
    table = pq.read_table(folder / "out" / "episodes.parquet", columns=["started_at"])
    return dict(zip(_rows(folder), table["started_at"].to_pylist(), strict=True))


@pytest.mark.timeout(400)
def test_ctrl_c_finishes_current_trials_a_second_stops_at_once_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Launch(tmp_path)
    first.read_until(_after_episodes(3))
    first.ctrl_c()
    assert first.finish() == 1
    assert any("finishing the episodes in hand; Ctrl-C again stops now" in line for line in first.lines)
    assert any("stopped: interrupted (the same command goes on" in line for line in first.lines)
    kept = _rows(tmp_path)
    assert len(kept) == len(first.episodes)
    assert 3 <= len(kept) < 20
    assert not any("ERROR" in line or "Traceback" in line for line in first.lines)
    _check_twice(tmp_path, kept)
    _check_resumed(tmp_path)
    _check_finished(tmp_path, monkeypatch)


def _check_twice(folder: Path, kept: list[tuple[int, int]]) -> None:
    second = Launch(folder)
    second.read_until(_after_episodes(2))
    (folder / "gate").touch()  # from now on the episodes in hand get nowhere
    second.ctrl_c()
    second.read_until(_says("finishing the episodes in hand"))
    second.ctrl_c()
    began = time.monotonic()
    assert second.finish() == 1
    assert time.monotonic() - began < 30
    (folder / "gate").unlink()
    assert any("stopping now" in line for line in second.lines)
    assert any(f"{len(kept)} of 20 episodes are finished" in line for line in second.lines)
    assert set(kept) < set(_rows(folder))
    assert len(_rows(folder)) == len(kept) + len(second.episodes)


def _check_resumed(folder: Path) -> None:
    before = _attempts(folder)
    third = Launch(folder)
    assert third.finish() == 0
    assert _rows(folder) == [(task, trial) for task in range(10) for trial in range(2)]
    assert len(third.episodes) == 20 - len(before)
    assert before.items() <= _attempts(folder).items()
    _check_plain_lines(third.lines, folder / "out")


def _check_plain_lines(lines: list[str], folder: Path) -> None:
    """Check the lines that monitoring follows; no escape codes, and nothing from Ray."""
    assert not any("\x1b" in line for line in lines)
    log = [line.split(" ", 2)[2] for line in (folder / "run.log").read_text().splitlines()]
    assert set(line for line in lines if line.startswith(("Task", "Overall"))) <= set(log)
    assert re.fullmatch(r"Overall success rate: \d+\.\d\d% \(\d+/20\)", log[-1])
    assert all(re.fullmatch(r"Task \d move_the_cube_\d: \d+\.\d\d% \(\d/2\)", line) for line in log[-11:-1])
    assert lines[-2] == f"Results in {folder}"
    known = ("resuming", "Task", "Overall", "policy-", "Success rate", "Results in", "Query them", "Report")
    odd = [line for line in lines if not line.startswith(known) and "env actors" not in line]
    assert not odd
    duckdb = pytest.importorskip("duckdb")
    query = re.fullmatch(r'Query them: duckdb -c "(.*)"', lines[-1])
    assert query is not None and len(duckdb.sql(query[1]).fetchall()) == 10


def _check_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a finished run starts no Ray, keeps its tables and exits with 0; more trials would resume it."""
    monkeypatch.setattr("ray.init", None)
    before = pq.read_table(folder / "out" / "episodes.parquet")
    argv = [*FAKE, "--policy", "tests.gated_policy", "--num_trials_per_task", "2", "--output_dir", str(folder / "out")]
    assert main(argv) == 0
    assert pq.read_table(folder / "out" / "episodes.parquet").equals(before)
    info = json.loads((folder / "out" / "run.json").read_text())
    assert (info["state"], info["instruction_source"]) == ("finished", "file_name")


def test_a_run_that_is_terminated_while_its_videos_are_rendered_leaves_them_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wpray.launch", "--task_suite", "fake", "--num_trials_per_task", "5"]
    command += ["--video.mode", "all", "--video.max_count", "50", "--output_dir", "out"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=_environ(tmp_path))
    assert run.stdout is not None
    next(line for line in run.stdout if line.startswith("Rendering 50 videos"))
    run.terminate()  # once: the line comes twice if it is interrupted just then
    run.stdout.read()
    assert run.wait(60) == 0
    assert "videos skipped" in (tmp_path / "out" / "run.log").read_text()
    assert (tmp_path / "out" / "report.html").exists()
    assert len(_rows(tmp_path)) == 50 > len(list((tmp_path / "out").glob("videos/*")))


def test_a_scheduler_s_long_folder_for_temporary_files_does_not_stop_ray(tmp_path: Path) -> None:
    """Paths of sockets have at most 107 bytes."""
    long = tmp_path / ("job" * 30)
    long.mkdir()
    command = [sys.executable, "-m", "wpray.launch", *FAKE, "--tasks", "0", "--output_dir", "out"]
    environ = _environ(tmp_path) | {"TMPDIR": str(long)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(_rows(tmp_path)) == 1
    assert not any(long.iterdir())


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wpray.launch", *FAKE, "--tasks", "0-3", "--output_dir", "out"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=_environ(tmp_path)
    )
    assert run.stdout is not None and run.stderr is not None
    assert b"4 episodes" in run.stdout.readline()
    run.stdout.close()
    assert (run.stderr.read(), run.wait(120)) == (b"", 0)
    assert len(_rows(tmp_path)) == 4


def test_on_a_terminal_a_run_is_shown_live_and_ends_in_a_table(tmp_path: Path) -> None:
    shown, returncode = _run_on_a_terminal(
        [sys.executable, "-m", "wpray.launch", *FAKE, "--tasks", "0-3", "--output_dir", "out"], tmp_path
    )
    assert returncode == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for expected in ("starting Ray", "episodes", "envs busy", "95% interval", "Success rate 100.0% (4/4)", "duckdb"):
        assert expected in text
    assert "Traceback" not in text and "raylet" not in text
    assert not EPISODE.search(text)  # the log has them


def _run_on_a_terminal(command: list[str], folder: Path) -> tuple[str, int]:
    ours, theirs = pty.openpty()
    environ = _environ(folder) | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, cwd=folder, env=environ)
    os.close(theirs)
    shown = b"".join(_until_closed(ours))
    os.close(ours)
    return shown.decode(errors="replace"), process.wait(60)


def _until_closed(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # how a pseudo-terminal says that nobody writes any more
            return
        if not data:
            return
        yield data
