"""Damaged run folders, each given to every reader: one line and exit code 2, or a result that says what is missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray import compare
from wpray.cli.command import run_command
from wpray.errors import DamagedRunError, NewerSchemaError
from wpray.export import __main__ as export
from wpray.report import __main__ as report
from wpray.results import load
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA, VERSION_KEY
from wpray.results.writer import RunFolder
from wpray.video import __main__ as video

Damage = Callable[[Path], object]
READERS = ("load", "report", "compare", "export", "video")


@dataclass(frozen=True)
class Case:
    """A way to damage a run's folder."""

    name: str
    damage: Damage
    merged: bool = True


# --- ways to damage


def _raw(name: str, data: bytes) -> Damage:
    return lambda run: (run / name).write_bytes(data)


def _cut(name: str, share: float) -> Damage:
    def damage(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: int(share * len(data))])

    return damage


def _folder_instead(name: str) -> Damage:
    return lambda run: ((run / name).unlink(), (run / name).mkdir())


def _info(change: dict[str, Any], config: dict[str, Any] | None = None) -> Damage:
    def damage(run: Path) -> None:
        info = json.loads((run / "run.json").read_text())
        info |= change
        if config is not None:
            info["config"] |= config
        (run / "run.json").write_text(json.dumps(info))

    return damage


def _table(name: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run: Path) -> None:
        path = run / name
        table = pq.read_table(path)
        pq.write_table(change(table), path)

    return damage


def _set(name: str, column: str, value: Any, kind: pa.DataType | None = None) -> Damage:
    """The last row's value of a column, or all of another type."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist() if kind is None else [None] * (len(table) - 1)
        index, field = table.schema.get_field_index(column), table.schema.field(column)
        if kind is not None:
            return table.set_column(index, pa.field(column, kind), pa.array([value] * len(table), kind))
        return table.set_column(index, field.with_nullable(True), pa.array([*values[:-1], value], field.type))

    return _table(name, change)


def _versioned(name: str, version: bytes) -> Damage:
    return _table(name, lambda t: t.replace_schema_metadata({**t.schema.metadata, VERSION_KEY: version}))


def _without(name: str, column: str) -> Damage:
    return _table(name, lambda table: table.drop_columns([column]))


def _part(run: Path) -> Path:
    return RunFolder(run).parts()[-1]


def _of_part(damage: Callable[[str], Damage]) -> Damage:
    return lambda run: damage(str(_part(run)))(run)


def _gone(run: Path) -> None:
    shutil.rmtree(run)


def _loop(run: Path) -> None:
    shutil.rmtree(run)
    run.symlink_to(run)


def _empty(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def _file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("a file")


def _pipe(run: Path) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")


# --- cases

EPISODES, DECISIONS = "episodes.parquet", "decisions.parquet"
TRAJECTORY = "trajectories/fake_000_00000.parquet"
_NAN, _INF = float("nan"), float("inf")
_LATE, _EARLY = datetime(2999, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)
_NOT_JSON = (b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"[" * 10_000, b"{}", b"\x00", b'{"run_id": NaN')
_INFOS: tuple[dict[str, Any], ...] = (
    *({"run_id": value} for value in (None, 3, [], {})),
    *({"config": value} for value in (None, [], "x", 3)),
    *({"hosts": value} for value in ([], "x", {"h": 3}, {"h": {"versions": []}})),
    *({"waypoint_space": value} for value in ([], {}, {"scale": [1]}, {"scale": ["x"] * 8, "offset": [0] * 8})),
    {"waypoint_space": {"scale": [_NAN] * 8, "offset": [0.0] * 8}},
    *({"action_spec": value} for value in ([], "x", {"dim": 6.5}, {"control": 3}, {"low": "x"}, {"names": 3})),
    *({"robot": value} for value in (3, [])),
    *({"control_hz": value} for value in ("20", True, [])),
    *({"state_columns": value} for value in ({}, "x", ["eef_pos"], [{"name": "eef_pos"}])),
    *({"planned_episodes": value} for value in ("many", 1.5, [], True, _INF)),
    *({name: 3} for name in ("state", "started_at", "written_at", "stop_reason", "git_commit", "host", "renderer")),
    *({name: []} for name in ("outcome_fields", "versions", "policy_files", "platform", "fingerprint")),
    *({"schema_version": value} for value in ("2.0", "10", "x", "", 3, [1])),
)
_CONFIGS: tuple[dict[str, Any], ...] = (
    *({"num_trials_per_task": value} for value in ("many", 1.5, [])),
    *({"tasks": value} for value in (3, "0", True)),
    *({name: 3} for name in ("policy", "policy_args", "vlm_checkpoint", "env", "task_suite", "ae_checkpoint")),
    {"num_steps_wait": "x"},
)
_EPISODE_REQUIRED = [field.name for field in EPISODE_SCHEMA if not field.nullable]
_DECISION_REQUIRED = [field.name for field in DECISION_SCHEMA if not field.nullable]
_OTHER_TYPES = {"task_id": "1", "trial": "1", "num_steps": "9", "started_at": "now", "success": "yes", "wall_s": "1"}


def _cases() -> Iterator[Case]:
    yield from (Case("no folder", _gone), Case("a loop of links", _loop), Case("an empty folder", _empty))
    yield from (Case("a file", _file), Case("run.json is a pipe", _pipe))
    yield Case("run.json is a folder", _folder_instead("run.json"))
    yield Case("no run.json", lambda run: (run / "run.json").unlink())
    yield from (Case(f"run.json is {data[:8]!r}", _raw("run.json", data)) for data in _NOT_JSON)
    yield from (Case(f"run.json with {change}", _info(change)) for change in _INFOS)
    yield from (Case(f"config with {change}", _info({}, change)) for change in _CONFIGS)
    for name, columns in ((EPISODES, _EPISODE_REQUIRED), (DECISIONS, _DECISION_REQUIRED)):
        yield from (Case(f"{name} cut to {share:.0%}", _cut(name, share)) for share in (0, 0.1, 0.5, 0.99))
        yield from (Case(f"{name} is {data!r}", _raw(name, data)) for data in (b"PAR1", b"x" * 99, b"PAR1" * 9))
        yield Case(f"{name} is a folder", _folder_instead(name))
        yield from (
            Case(f"{name} of version {version!r}", _versioned(name, version)) for version in (b"2", b"2.1", b"x")
        )
        for column in columns:
            yield Case(f"{name} without {column}", _without(name, column))
            yield Case(f"{name} with null in {column}", _set(name, column, None))
    yield Case("no row", _table(EPISODES, lambda table: table.slice(0, 0)))
    yield Case("no table and no part", lambda run: [(run / name).unlink() for name in (EPISODES, DECISIONS)])
    yield Case("rows twice", _table(EPISODES, lambda table: pa.concat_tables([table, table])))
    yield Case("one row twice", _table(EPISODES, lambda table: pa.concat_tables([table, table.slice(1, 1)])))
    yield Case("a column twice", _table(EPISODES, lambda table: table.append_column("trial", table["trial"])))
    yield from (Case(f"{c} as text", _set(EPISODES, c, v, pa.string())) for c, v in _OTHER_TYPES.items())
    yield from (Case(f"{c} as lists", _set(EPISODES, c, [], pa.list_(pa.int32()))) for c in _OTHER_TYPES)
    for column in ("reset_s", "env_s", "render_s", "policy_wait_s", "wall_s"):
        yield from (Case(f"{column} {value}", _set(EPISODES, column, value)) for value in (_NAN, _INF, -1.0, 1e12))
    for column in ("task_id", "trial", "num_steps", "max_steps", "num_plans", "num_segments"):
        yield Case(f"{column} -1", _set(EPISODES, column, -1))
    yield from (Case(f"{column} huge", _set(EPISODES, column, 2**31 - 1)) for column in ("task_id", "trial"))
    yield from (
        Case(f"status {value!r}", _set(EPISODES, "status", value)) for value in ("", "SUCCESS", "won", "x" * 999)
    )
    yield from (Case(f"success {value} of a success", _set(EPISODES, "success", value)) for value in (None, False))
    for column in ("started_at", "ended_at"):
        yield from (Case(f"{column} {value:%Y}", _set(EPISODES, column, value)) for value in (_LATE, _EARLY))
    for column in ("step", "asked_s", "wait_s", "queue_s", "compute_s", "planner_s", "expert_s"):
        values = (-1,) if column == "step" else (_NAN, _INF, -1.0)
        yield from (Case(f"decisions' {column} {value}", _set(DECISIONS, column, value)) for value in values)
    yield from (Case(f"batch_size {value}", _set(DECISIONS, "batch_size", value)) for value in (0, -3))
    yield Case("an odd kind", _set(DECISIONS, "kind", "thought"))
    yield from (
        Case(f"decisions' {c} as text", _set(DECISIONS, c, "1", pa.string())) for c in ("task_id", "step", "wait_s")
    )
    for share in (0, 0.2, 0.7, 0.99):
        yield Case(f"a part cut to {share:.0%}", _of_part(lambda name, share=share: _cut(name, share)), merged=False)
    yield Case("a part of noise", _of_part(lambda name: _raw(name, b"noise" * 50)), merged=False)
    yield Case("a part of another trial", lambda run: shutil.copy(RunFolder(run).parts()[0], _part(run)), merged=False)
    yield Case("a part with an odd name", lambda run: _part(run).rename(_part(run).with_stem("notes")), merged=False)
    yield Case("a part is a folder", _of_part(_folder_instead), merged=False)
    yield Case("a part of version 2", _of_part(lambda name: _versioned(name, b"2.0")), merged=False)
    yield Case("a part without trial", _of_part(lambda name: _without(name, "trial")), merged=False)


MALFORMED = [(case, reader) for case in _cases() for reader in READERS]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A sound run, merged and as it is before its merge."""
    folders = {merged: tmp_path_factory.mktemp("template") / "run" for merged in (True, False)}
    for merged, folder in folders.items():
        write_run(folder, [[False, True], [True, True]], steps=40, merged=merged)
    return folders


@pytest.fixture
def run(templates: dict[bool, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    merged = getattr(request, "param", True)
    shutil.copytree(templates[merged], tmp_path / "run")
    return tmp_path / "run"


def _read(reader: str, run: Path, sound: Path, out: Path) -> int:
    """Exit code of a command on the run; `load` in a command's clothes."""
    argv = {
        "load": [],
        "report": [str(run), "--out", str(out / "page.html")],
        "compare": [str(run), str(sound), "--anyway"],
        "export": ["lerobot", str(run), str(out / "set"), "--no-videos"],
        "video": [str(run), "--out", str(out / "videos")],
    }[reader]
    mains = {"report": report.main, "compare": compare.main, "export": export.main, "video": video.main}
    return run_command(mains.get(reader, lambda _: load(run) and 0), argv)


@pytest.mark.parametrize(("case", "reader"), MALFORMED, ids=[f"{case.name}-{reader}" for case, reader in MALFORMED])
def test_a_reader_refuses_it_in_one_line_and_writes_nothing(
    case: Case, reader: str, templates: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(templates[case.merged], run)
    case.damage(run)
    (tmp_path / "out").mkdir()
    assert _read(reader, run, templates[True], tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    assert len(said.err) < 1500 and not list((tmp_path / "out").iterdir())
    if reader == "load":
        with pytest.raises((DamagedRunError, NewerSchemaError)):
            load(run)


def test_these_are_enough_inputs() -> None:
    assert len(MALFORMED) >= 700


# --- what a reader can do without

PARTIAL: dict[str, tuple[Damage, str]] = {
    "no decisions": (lambda run: (run / DECISIONS).unlink(), "decisions.parquet is missing"),
    "decisions of another merge": (
        _table(DECISIONS, lambda t: t.replace_schema_metadata({**t.schema.metadata, b"wpray_merged": b"other"})),
        "is of another merge than episodes.parquet",
    ),
    "decisions of other episodes": (_set(DECISIONS, "trial", 77), "1 decisions of episodes that have no row"),
}


@pytest.mark.parametrize("reader", ["load", "report", "compare", "export"])
@pytest.mark.parametrize("name", PARTIAL)
def test_a_reader_that_can_do_without_says_what_is_missing(
    run: Path, name: str, reader: str, templates: dict[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, said = PARTIAL[name]
    damage(run)
    (tmp_path / "out").mkdir()
    assert _read(reader, run, templates[True], tmp_path / "out") == 0
    assert said in caplog.text
    if reader == "report":
        assert said in (tmp_path / "out" / "page.html").read_text()


def _of_another(run: Path) -> None:
    shutil.copy(run / "trajectories" / "fake_001_00001.parquet", run / TRAJECTORY)


TRAJECTORIES: dict[str, Damage] = {
    **{f"cut to {share:.0%}": _cut(TRAJECTORY, share) for share in (0, 0.3, 0.99)},
    "noise": _raw(TRAJECTORY, b"noise" * 99),
    "of another episode": _of_another,
    "fewer steps": _table(TRAJECTORY, lambda table: table.slice(0, 20)),
    "without positions": _table(TRAJECTORY, lambda table: table.drop_columns(["eef_pos"])),
}
_OLD = _table(EPISODES, lambda table: table.drop_columns(["trajectory_crc32"]))  # as before 1.1


@pytest.mark.parametrize("known", [True, False], ids=["with its checksum", "without"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_damaged_trajectory_is_named_and_never_half_used(
    run: Path, name: str, known: bool, templates: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not known:
        if name == "of another episode":
            pytest.skip("nothing tells before 1.1")
        _OLD(run)
    TRAJECTORIES[name](run)
    (tmp_path / "out").mkdir()
    with pytest.raises(DamagedRunError, match="must run again"):
        load(run).trajectory(("fake", 0, 0))
    assert load(run).trajectory(("fake", 1, 0)).num_rows == 40
    assert _read("report", run, templates[True], tmp_path / "out") == 0
    assert "1 trajectories are left out of the waypoints" in (tmp_path / "out" / "page.html").read_text()
    assert _read("compare", run, templates[True], tmp_path / "out") == 0
    capsys.readouterr()
    assert _read("export", run, templates[True], tmp_path / "out") == 2
    assert "must run again" in capsys.readouterr().err and not (tmp_path / "out" / "set").exists()


def test_videos_of_damaged_recordings_are_refused_before_ray_starts(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr("wpray.video.render.render", lambda config, jobs, *more: asked.extend(jobs) or 0)
    TRAJECTORIES["cut to 30%"](run)
    assert run_command(video.main, [str(run), "--tasks", "0", "--trials", "0"]) == 2
    assert "none of 1 episodes can be rendered" in capsys.readouterr().err and not asked
    assert run_command(video.main, [str(run)]) == 1, "some could not be"
    assert len(asked) == 3 and "no video: " in caplog.text


@pytest.mark.parametrize("reader", ["export", "video"])
def test_recordings_without_states_are_refused_before_anything_is_rendered(
    run: Path, reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _OLD(run)
    names = ["qpos", "qvel", "render_qpos", "render_site_alpha"]
    for path in (run / "trajectories").iterdir():
        _table(str(path), lambda table: table.drop_columns(names))(run)
    argv = [str(run)] if reader == "video" else ["lerobot", str(run), str(tmp_path / "set")]
    assert run_command({"export": export.main, "video": video.main}[reader], argv) == 2
    assert "lacks the simulator's state" in capsys.readouterr().err and not (tmp_path / "set").exists()
    assert run_command(export.main, ["lerobot", str(run), str(tmp_path / "set"), "--no-videos"]) == 0


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
@pytest.mark.parametrize("reader", ["report", "compare"])
def test_a_full_disk_is_one_line(run: Path, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(run), "--out", "/dev/full"] if reader == "report" else [str(run), str(run), "--json", "/dev/full"]
    assert run_command({"report": report.main, "compare": compare.main}[reader], argv) == 2
    said = capsys.readouterr().err
    assert "cannot write /dev/full (No space left on device)" in said and said.count("\n") == 1
    assert Path("/dev/full").is_char_device()


def test_runs_of_which_one_does_not_say_what_decided_it_are_not_compared(
    run: Path, templates: dict[bool, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _info({"outcome_fields": None})(run)
    assert run_command(compare.main, [str(run), str(templates[True])]) == 2
    assert "the run.json of A has no outcome_fields" in capsys.readouterr().err
