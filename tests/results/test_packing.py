"""Merged tables and parts: each trial counts once, nothing is lost whenever the driver dies, nothing stays stale."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import _episode, write_run
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.errors import BadInputError, DamagedRunError, NewerSchemaError, RunStoppedError
from wpray.results import load
from wpray.results import merge as merging
from wpray.results.columns import checksum
from wpray.results.merge import merge
from wpray.results.schema import COLUMNS_CRC32, PART_SCHEMA, VERSION_KEY
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder
from wpray.types import Trial

TABLES = ("episodes.parquet", "decisions.parquet")


def _write(folder: RunFolder, trial: int, success: bool | None) -> None:
    folder.write_episodes(_episode(Trial(fake_tasks()[0], trial, 0), success, trial, 30, 1))


def _folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open()
    return folder


def _statuses(path: Path) -> list[tuple[int, str]]:
    episodes = load(path).episodes
    return list(zip(episodes["trial"].to_pylist(), episodes["status"].to_pylist(), strict=True))


def _resumed_and_killed(path: Path) -> RunFolder:
    """Two trials merged, one of them an error; then a resume that was killed before its merge."""
    write_run(path, [[True, None]], steps=30)
    folder = _folder(path)
    assert [trial for _, _, trial in folder.finished()] == [0]
    _write(folder, 1, True)
    _write(folder, 2, False)
    return folder


def test_an_outcome_that_was_not_merged_replaces_the_old_error_and_the_reader_says_so(tmp_path: Path) -> None:
    folder = _resumed_and_killed(tmp_path)
    run = load(tmp_path)
    assert _statuses(tmp_path) == [(0, "success"), (1, "success"), (2, "failure")]
    assert run.decisions["trial"].to_pylist() == [0] * 3 + [1] * 3 + [2] * 3
    assert "2 of 3 episodes are read from parts/" in run.notes[0]
    merge(folder)
    merged = load(tmp_path)
    assert merged.episodes.equals(run.episodes) and merged.decisions.equals(run.decisions) and not merged.notes


def test_an_episode_is_on_the_disk_once(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, None, False]] * 3)
    assert not RunFolder(tmp_path).parts()
    assert len(_folder(tmp_path).finished()) == 6


def test_an_old_error_that_comes_back_beside_its_outcome_changes_nothing(tmp_path: Path) -> None:
    """As where a folder was copied before and after the trial ran again."""
    write_run(tmp_path, [[True, None]], steps=30, merged=False)
    folder = RunFolder(tmp_path)
    old = folder.part_path(("fake", 0, 1)).read_bytes()
    _write(folder, 1, True)
    merge(folder)
    folder.part_path(("fake", 0, 1)).write_bytes(old)
    assert _statuses(tmp_path) == [(0, "success"), (1, "success")]
    assert len(load(tmp_path).decisions) == 6
    merge(folder)
    assert _statuses(tmp_path) == [(0, "success"), (1, "success")] and not folder.parts()


def test_videos_stay_named_when_parts_that_were_merged_come_back(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]], merged=False)
    folder, videos = RunFolder(tmp_path), VideoFolder.of(tmp_path, None)
    shutil.copytree(tmp_path / "parts", tmp_path / "kept")
    videos.path.mkdir()
    (videos.path / "rollout_move_the_cube_0_t1_failure.mp4").touch()
    merge(folder, videos)
    shutil.copytree(tmp_path / "kept", tmp_path / "parts", dirs_exist_ok=True)
    run = load(tmp_path)
    assert run.episodes["video_path"].to_pylist()[1] == "videos/rollout_move_the_cube_0_t1_failure.mp4"
    assert not run.notes, "these parts are in the table"


class KilledError(BaseException):
    """Stands for `kill -9`: from here on, no call gets anywhere."""


def _merge_until_killed(folder: RunFolder, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    calls = itertools.count()

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            if next(calls) >= at:
                raise KilledError
            return call(*args, **options)

        return act

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "replace", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            merge(folder)
        except KilledError:
            return True
    return False


def test_a_kill_at_any_moment_of_a_merge_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _resumed_and_killed(tmp_path / "whole")
    merge(whole)
    expected = [pq.read_table(whole.path / name) for name in TABLES]
    states = set()
    for at in itertools.count():
        folder = _resumed_and_killed(tmp_path / str(at))
        killed = _merge_until_killed(folder, at, monkeypatch)
        folder.close()
        states.add((len(folder.parts()), pq.read_metadata(folder.path / TABLES[0]).num_rows))
        run = load(folder.path)
        assert [run.episodes.equals(expected[0]), run.decisions.equals(expected[1])] == [True, True], at
        folder = _folder(folder.path)
        assert {trial for _, _, trial in folder.finished()} == {0, 1, 2}
        merge(folder)
        assert not folder.parts() and not list(folder.path.rglob("*.tmp"))
        assert all(
            pq.read_table(folder.path / name).equals(table) for name, table in zip(TABLES, expected, strict=True)
        )
        if not killed:
            break
    assert states == {(2, 2), (2, 3), (1, 3), (0, 3)}, "it was killed before, between and after every step"


def test_parts_stay_if_the_tables_that_hold_them_cannot_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, finish = _resumed_and_killed(tmp_path), merging._Replacing.finish
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}

    def on_a_bad_disk(file: merging._Replacing, digest: str | None) -> None:
        finish(file, digest)
        data = bytearray(file.temporary.read_bytes())
        data[100] ^= 1
        file.temporary.write_bytes(data)

    with monkeypatch.context() as patch, pytest.raises(RunStoppedError, match=r"read back .* all parts are kept"):
        patch.setattr(merging._Replacing, "finish", on_a_bad_disk)
        merge(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_a_damaged_table_is_set_aside_with_a_line_and_its_trials_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, [[True, False]])
    data = bytearray((tmp_path / "episodes.parquet").read_bytes())
    data[100] ^= 1
    (tmp_path / "episodes.parquet").write_bytes(data)
    with pytest.raises(DamagedRunError, match="not readable"):
        load(tmp_path)
    folder = _folder(tmp_path)
    assert folder.finished() == {}
    assert "episodes.parquet is damaged" in caplog.text and "episodes.parquet.damaged" in caplog.text
    _write(folder, 0, True)
    merge(folder)
    assert _statuses(tmp_path) == [(0, "success")]


def test_damaged_decisions_cost_no_outcome(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path, [[True, False]])
    (tmp_path / "decisions.parquet").write_bytes(b"PAR1")
    folder = _folder(tmp_path)
    assert len(folder.finished()) == 2
    assert "its decisions are lost, no outcome is" in caplog.text
    run = load(tmp_path)
    assert run.episodes.num_rows == 2 and not len(run.decisions) and "decisions.parquet is missing" in run.notes[0]


def _change(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """A file as another version would have written it: whole, and of its own columns."""
    table = change(pq.read_table(path))
    if COLUMNS_CRC32 in table.schema.metadata:
        table = table.replace_schema_metadata({**table.schema.metadata, COLUMNS_CRC32: checksum(table.schema)})
    pq.write_table(table, path)


def _versioned(table: pa.Table, version: str) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY: version.encode()})


def _with_column(table: pa.Table) -> pa.Table:
    return _versioned(table.append_column("temperature", pa.array([0.5] * len(table))), "1.9")


@pytest.mark.parametrize("merged", [True, False])
def test_columns_of_a_later_minor_version_are_passed_through_and_those_of_an_earlier_are_null(
    tmp_path: Path, merged: bool
) -> None:
    write_run(tmp_path, [[True, True, True]], merged=merged)
    folder = _folder(tmp_path)
    files = [tmp_path / "episodes.parquet"] if merged else folder.parts()
    _change(files[0], _with_column)
    _change(files[-1], lambda table: table.drop_columns(["metrics", "attempt_errors", "checkpoint"]))
    run = load(tmp_path)
    assert run.episodes["checkpoint"].to_pylist() == [None] * 3 and run.episodes["metrics"].null_count == 3
    expected = [0.5] * 3 if merged else [0.5, None, None]
    assert run.episodes["temperature"].to_pylist() == expected
    assert len(folder.finished()) == 3
    _write(folder, 3, True)
    merge(folder)
    assert not folder.parts() and not list(tmp_path.rglob("*.damaged"))
    assert load(tmp_path).episodes["temperature"].to_pylist() == [*expected, None], (
        "a merge keeps what it does not know"
    )


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("column", ["task_id", "status", "ended_at"])
def test_a_column_that_every_version_has_is_never_set_aside_for_missing(
    tmp_path: Path, merged: bool, column: str
) -> None:
    write_run(tmp_path, [[True, True]], merged=merged)
    folder = _folder(tmp_path)
    path = tmp_path / "episodes.parquet" if merged else folder.parts()[0]
    _change(path, lambda table: table.drop_columns([column]))
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=f"column {column} is missing"):
        folder.finished()
    assert path.read_bytes() == before and not list(tmp_path.rglob("*.damaged"))


@pytest.mark.parametrize("name", ["episodes.parquet", "decisions.parquet", "part", "run.json"])
def test_a_newer_major_version_is_refused_by_name_by_a_reader_and_by_a_resume(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, [[True, True]], merged=name != "part")
    folder = _folder(tmp_path)
    if name == "run.json":
        folder.write_info({**(folder.read_info() or {}), "schema_version": "2.0"})
    else:
        path = folder.parts()[0] if name == "part" else tmp_path / name
        _change(path, lambda table: _versioned(table, "2.0"))
    said = r"was written with results schema 2\.0, this wpray reads up to 1\.\d+; read it with the version of wpray"
    with pytest.raises(NewerSchemaError, match=said):
        load(tmp_path)
    with pytest.raises(NewerSchemaError, match=said):
        folder.read_info()
        folder.finished()
    assert not list(tmp_path.rglob("*.damaged"))


def test_a_part_says_which_columns_it_was_written_with(tmp_path: Path) -> None:
    """Else a flipped bit in a column's name would be a column that another version has."""
    write_run(tmp_path, [[True]], merged=False)
    (path,) = RunFolder(tmp_path).parts()
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name.replace("metrics", "metrids") for name in table.column_names]), path)
    assert _folder(tmp_path).finished() == {}
    assert path.with_name(path.name + ".damaged").exists()
    assert "metrics" in PART_SCHEMA.names
