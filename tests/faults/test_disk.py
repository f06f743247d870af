"""A disk that fills up: a small file system of its own, with a file in it that takes the room."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import runs
from tests.faults.conftest import SHORT, Record

pytestmark = pytest.mark.faults
_SIZE = 4 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, of which some 300 kB are free."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        (path / "ballast").write_bytes(b"x" * (_SIZE - 300_000))
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_pauses_the_run_until_there_is_room(
    small_disk: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    with runs.launched(small_disk / "run", *SHORT) as run:
        assert run.wait_for(lambda: "no room left" in run.text), run.text
        written = run.finished_trials
        assert 0 < written < 32
        (small_disk / "ballast").unlink()
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived("disk full, then room", 1)


def test_a_full_disk_stops_the_run_with_what_is_there_intact(
    small_disk: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    for _ in range(2):  # the second finds the disk full
        with runs.launched(small_disk / "run", *SHORT) as run:
            if run.wait_for(lambda: "; waiting (" in run.text):  # else it stopped by itself, sooner
                os.kill(run.process.pid, signal.SIGINT)
            assert run.end() == 1, run.text[-3000:]
        assert "Traceback" not in run.text and "Logging error" not in run.text
        assert run.text.splitlines()[-1].startswith("stopped: no room left for ")
    (small_disk / "ballast").unlink()
    with runs.launched(small_disk / "run", *SHORT) as run:
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived("disk stays full", 2, "exit code 1, then same table")
