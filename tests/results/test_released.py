"""A run of every released schema is read, reported, compared, exported and gone on with, whatever came later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray import compare
from wpray.cli.command import run_command
from wpray.export import __main__ as export
from wpray.launch import main as launch
from wpray.report import __main__ as report
from wpray.results import load
from wpray.results.merge import merge
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA, PART_SCHEMA, SCHEMA_VERSION, trajectory_schema
from wpray.results.writer import RunFolder
from wpray.types import ARM_COLUMNS, EEF_ACTION
from wpray.video import __main__ as video

RELEASED = sorted((Path(__file__).parents[1] / "data" / "released").iterdir())
STATUSES = ["success", "success", "success", "error", "failure", "success"]
LAYOUTS = ("as it was", "its tables alone", "its parts alone")


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


@pytest.fixture(params=LAYOUTS)
def run(request: pytest.FixtureRequest, released: Path) -> Path:
    """Also as a folder from which parts, or tables, were removed."""
    if request.param == "its tables alone":
        shutil.rmtree(released / "parts")
    elif request.param == "its parts alone":
        for name in ("episodes.parquet", "decisions.parquet"):
            (released / name).unlink()
    return released


def test_this_schema_version_has_a_run_or_is_of_the_major_version_of_one() -> None:
    assert RELEASED and {path.name.split("_")[1].split(".")[0] for path in RELEASED} >= {SCHEMA_VERSION.split(".")[0]}


def test_its_tables_are_those_of_this_version(run: Path) -> None:
    found = load(run)
    assert found.episodes.schema.equals(EPISODE_SCHEMA) and found.decisions.schema.equals(DECISION_SCHEMA)
    assert found.episodes["status"].to_pylist() == STATUSES
    assert found.trajectory(("fake", 2, 0)).num_rows == 130
    assert len(found.decisions) == sum(
        plans + segments
        for plans, segments in zip(*(found.episodes[n].to_pylist() for n in ("num_plans", "num_segments")), strict=True)
    )


def _fields(kind: pa.DataType | pa.Schema) -> Iterator[pa.Field]:
    for index in range(len(kind) if isinstance(kind, pa.Schema) else kind.num_fields):
        field = kind.field(index)
        yield field
        yield from _fields(field.type)


@pytest.mark.parametrize(
    "schema", [PART_SCHEMA, DECISION_SCHEMA, EPISODE_SCHEMA, trajectory_schema(ARM_COLUMNS, EEF_ACTION)]
)
def test_every_supported_pyarrow_reads_what_is_written(schema: pa.Schema) -> None:
    """Those before 26 read no null of a list with a fixed size, as users' own readers do not, either."""
    nullable = [field for field in _fields(schema) if field.nullable]
    assert not [field.name for field in nullable if pa.types.is_fixed_size_list(field.type)]


def test_poses_of_a_fixed_size_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Runs of a while had them, with null for plans."""
    write_run(tmp_path / "run", [[True]])
    path = tmp_path / "run" / "decisions.parquet"
    table = pq.read_table(path)
    poses = [None, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], None]
    at = table.schema.get_field_index("reached_pose")
    as_it_was = table.set_column(at, "reached_pose", [pa.array(poses, pa.list_(pa.float32(), 6))])
    pq.write_table(as_it_was, path)
    found = load(tmp_path / "run").decisions
    assert found.schema.equals(DECISION_SCHEMA) and found["reached_pose"].to_pylist() == poses


def test_every_reader_reads_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(report.main, [str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "4 of 5 episodes" in (tmp_path / "page.html").read_text()
    assert run_command(compare.main, [str(run), str(run)]) == 0
    assert "5 paired trials; left out: 1 with an error" in capsys.readouterr().out
    assert run_command(export.main, ["lerobot", str(run), str(tmp_path / "set"), "--no-videos"]) == 0
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["total_episodes"] == 5


def test_it_is_packed_and_keeps_every_outcome(run: Path) -> None:
    before = load(run)
    folder = RunFolder(run)
    folder.open()
    assert len(folder.finished()) == 5
    merge(folder)
    folder.close()
    after = load(run)
    assert not folder.parts() and not after.notes and not list(run.rglob("*.damaged"))
    kept = [name for name in EPISODE_SCHEMA.names if name not in ("part_digest", "trajectory_crc32", "video_path")]
    assert after.episodes.select(kept).equals(before.episodes.select(kept)) and after.decisions.equals(before.decisions)


@pytest.mark.ray
def test_it_is_gone_on_with_and_rendered(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy breaks no environment now: the trial that had ended in an error has an outcome."""
    before = {row["trial"] + 10 * row["task_id"]: row for row in load(released).episodes.to_pylist()}
    options = ["--task_suite", "fake", "--tasks", "0-2", "--num_trials_per_task", "2", "--num_parallel", "1"]
    options += ["--policy", "tests.results.policies.breaking", "--video.max_count", "1", "--output_dir", str(released)]
    assert run_command(launch, options) == 0
    assert "5 of 6 episodes are finished" in (released / "run.log").read_text()
    after = load(released)
    assert not list((released / "parts").glob("*/*")) and not list(released.rglob("*.damaged"))
    assert after.info["schema_version"] == SCHEMA_VERSION
    for row in after.episodes.to_pylist():
        old = before[row["trial"] + 10 * row["task_id"]]
        same = ("status", "started_at", "ended_at", "worker", "num_steps")
        assert old["status"] == "error" or [row[name] for name in same] == [old[name] for name in same]
    assert after.episodes["status"].to_pylist() == [s.replace("error", "success") for s in STATUSES]
    where = ["--max-count", "1", "--num-actors", "1", "--out", str(tmp_path / "v")]
    assert run_command(video.main, [str(released), *where]) == 0
    assert len(list((tmp_path / "v").iterdir())) == 1
