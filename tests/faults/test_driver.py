"""The driver dies, twice runs at once, or finds a folder that is not its own or not whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults import runs
from tests.faults.conftest import SHORT, WORKERS, Record
from wpray.results.merged import DECISIONS, EPISODES, MergedTables
from wpray.results.unpack import unpack

pytestmark = pytest.mark.faults
_DRIVER_DEATHS = 10
MANY = ("--num_trials_per_task", "16", *WORKERS)  # 160 episodes: some are left after so many deaths


def test_kill_9_or_ctrl_c_at_any_moment_and_the_same_command_again(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*MANY)
    rng = random.Random(3)
    kept = dict[tuple[int, int], tuple[object, ...]]()
    for number in range(_DRIVER_DEATHS):
        with runs.launched(tmp_path / "run", *MANY) as run:
            # Some before the first episode, most while episodes end.
            run.wait_for(lambda: run.actors(runs.ENV) or rng.random() < 0.01)
            time.sleep(rng.uniform(0.0, 1.2))
            assert run.alive, "the run was over before all faults were injected"
            if number % 4 == 3 and run.wait_for(lambda: "env actors" in run.text):
                _ctrl_c(run, rng.choice((1, 2)))
            else:
                assert not run.kill(), "actors outlive their driver"
        recorded = runs.attempts(run.folder)
        assert kept.items() <= recorded.items(), "a finished trial was lost or run again"
        kept = recorded
    with runs.launched(tmp_path / "run", *MANY) as run:
        assert run.end() == 0, run.text[-3000:]
    assert "Traceback" not in run.text
    runs.assert_same(run.folder, undisturbed)
    assert kept.items() <= runs.attempts(run.folder).items()
    assert not list((run.folder / "parts").glob("*/*")), "an episode is on the disk twice"
    survived("driver: kill -9, same command again", _DRIVER_DEATHS - _DRIVER_DEATHS // 4)
    survived("driver: Ctrl-C once or twice, same command again", _DRIVER_DEATHS // 4)


def _ctrl_c(run: runs.Run, times: int) -> None:
    for _ in range(times):
        os.kill(run.process.pid, signal.SIGINT)
        time.sleep(0.1)
    code = run.end(60)
    # 130: before the first episode was handed out, or while the tables were written.
    assert code == 130 or (code == 1 and "interrupted (the same command goes on" in run.text), run.text[-3000:]


def test_damaged_files_are_set_aside_and_their_trials_run_again(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    _as_parts(folder)
    rng = random.Random(5)
    files = sorted((folder / "parts" / "fake").iterdir())
    rng.shuffle(files)
    for number, path in enumerate(files[:14]):
        target = path if number % 3 else folder / "trajectories" / f"fake_{path.name}"
        _damage(target, rng, number % 4)
    shutil.copy(files[20], files[21])  # another trial's part
    files[22].unlink()
    with runs.launched(folder, *SHORT) as run:
        assert run.end() == 0, run.text[-3000:]
    assert "16 of 32 episodes are finished" in run.text
    runs.assert_same(folder, undisturbed)
    assert len(list(folder.rglob("*.damaged"))) == 15
    survived("part or trajectory truncated, emptied or changed", 16)


def _as_parts(folder: Path) -> None:
    """The run as if it had been killed before it merged its parts."""
    tables = MergedTables.read(folder)
    assert tables is not None
    unpack(tables, replace(tables, episodes=tables.episodes.slice(0, 0)), folder)
    for name in (EPISODES, DECISIONS):
        (folder / name).unlink()


def _damage(path: Path, rng: random.Random, how: int) -> None:
    data = bytearray(path.read_bytes())
    if how == 0:
        data = data[: rng.randrange(1, len(data))]
    elif how == 1:
        data = bytearray()
    elif how == 2:
        data = bytearray(rng.randbytes(len(data)))
    else:
        # Within the column data, which no other field of the file would betray: a chunk ends in its last page's.
        columns = pq.read_metadata(path).row_group(0)
        column = columns.column(rng.randrange(columns.num_columns))
        end = column.data_page_offset + column.total_compressed_size
        if column.has_dictionary_page:
            end += column.dictionary_page_offset - column.data_page_offset
        data[end - 1] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_a_second_driver_is_refused_and_the_first_goes_on(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    with runs.launched(tmp_path / "run", *SHORT) as run:
        assert run.wait_for(lambda: run.finished_trials)
        second = _command(tmp_path / "run", *SHORT)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1 and "another driver is writing" in second.stderr
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived("second driver on one folder", 1, "refused, first one same table")


def test_another_configuration_is_refused_naming_the_fields(
    reference: Callable[..., Path], tmp_path: Path, survived: Record
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference(*SHORT), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    for options, said in (
        (("--seed", "1", "--num_steps_wait", "5"), "num_steps_wait (10 there, 5 here), seed (0 there, 1 here)"),
        (("--resume", "never"), "resume auto"),
        (("--resume", "only", "--env.max_steps", "7"), "env.max_steps (None there, 7 here)"),
    ):
        refused = _command(folder, *SHORT, *options)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1 and said in refused.stderr
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    nothing = _command(tmp_path / "none", *SHORT, "--resume", "only")
    assert nothing.returncode == 2 and "holds no run to go on with" in nothing.stderr
    assert not (tmp_path / "none").exists()
    assert _command(folder, *SHORT, "--resume", "only").returncode == 0
    survived("folder of another configuration, resume never|only", 4, "refused, untouched")


def _command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        runs.command(folder, *options),
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        timeout=120,
        check=False,
    )
