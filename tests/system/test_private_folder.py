"""The folder that a user's processes share exists while one of them runs, and is removed even after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wpray.cluster import ray_folder
from wpray.errors import BadInputError
from wpray.system import private_folder

ROOT = Path(__file__).parents[2]
_HOLD = """
import sys
from pathlib import Path
from wpray.system import private_folder
held = private_folder.hold()
(held.path / "file").touch()
print(held.path, flush=True)
sys.stdin.read()
"""
_HOLD_OFTEN = """
from pathlib import Path
import sys
from wpray.system import private_folder
for number in range(300):
    held = private_folder.hold()
    file = held.path / sys.argv[1] / "deep"
    file.mkdir(parents=True)
    assert file.exists()
    file.rmdir()
    file.parent.rmdir()
    held.release()
"""


def _start(folder: Path, code: str = _HOLD, *argv: str) -> subprocess.Popen[str]:
    environ = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *argv], stdin=pipe, stdout=pipe, text=True, env=environ)


def _path_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_the_last_process_that_ends_removes_the_folder_and_what_killed_ones_have_left(tmp_path: Path) -> None:
    first, second, third = (_start(tmp_path) for _ in range(3))
    paths = {_path_of(process) for process in (first, second, third)}
    assert len(paths) == 1 and all(path.parent == tmp_path for path in paths)
    first.communicate()
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert (paths.pop() / "file").exists()
    third.communicate()
    assert (first.returncode, third.returncode) == (0, 0)
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_has_left_goes_with_the_next_that_ends(tmp_path: Path) -> None:
    killed = _start(tmp_path)
    path = _path_of(killed)
    killed.kill()
    killed.communicate()
    assert path.exists()
    after = _start(tmp_path)
    assert _path_of(after) == path
    after.communicate()
    assert not any(tmp_path.iterdir())


def test_processes_that_come_and_go_never_lose_the_folder_that_they_hold(tmp_path: Path) -> None:
    processes = [_start(tmp_path, _HOLD_OFTEN, str(number)) for number in range(3)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["link", "file", "open to all"])
def test_a_folder_into_which_others_can_write_is_not_used(tmp_path: Path, how: str) -> None:
    path, elsewhere = private_folder.path_under(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if how == "link":
        path.symlink_to(elsewhere)
    elif how == "file":
        path.touch()
    else:
        path.mkdir()
        path.chmod(0o777)
    before = set(tmp_path.iterdir())
    held = private_folder.hold(tmp_path)
    assert held.path not in before and held.path.stat().st_mode & 0o077 == 0
    assert not any(elsewhere.iterdir())
    held.release()
    assert set(tmp_path.iterdir()) - {held.path} == before


def test_no_place_for_temporary_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="set TMPDIR"):
        private_folder.hold(tmp_path / "file")


def test_a_long_folder_for_temporary_files_is_not_where_ray_puts_its_sockets(tmp_path: Path) -> None:
    short = tmp_path / "s"
    short.mkdir()
    long = tmp_path / ("job" * 30)
    room = ray_folder._LONGEST_SOCKET - len(ray_folder._BELOW)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        with ray_folder.short_enough({name: str(long)}, places=("/proc/nowhere", "/tmp")) as folder:
            assert folder is not None and len(folder) < room + len("/ray")
            assert Path(folder).parent.stat().st_mode & 0o077 == 0
    with ray_folder.short_enough({"TMPDIR": str(long)}, places=(str(tmp_path / ("no" * 50)),)) as folder:
        assert folder is None


def test_a_short_folder_is_left_to_ray_and_one_that_cannot_be_written_is_not(tmp_path: Path) -> None:
    with ray_folder.short_enough({}, places=()) as folder:
        assert folder is None
    with ray_folder.short_enough({"TMPDIR": "/proc/nowhere"}) as folder:
        assert folder is not None


def test_ray_s_folder_is_removed_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_folder, "_LONGEST_SOCKET", 1000)
    with ray_folder.short_enough({"TMPDIR": "/proc/nowhere"}, places=(str(tmp_path),)) as folder:
        assert folder is not None
        Path(folder, "session").mkdir(parents=True)
    assert not any(tmp_path.iterdir())
