"""`wpray.results.load`: typed tables of finished, unfinished and broken folders; other readers open the files, too."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray.errors import BadInputError, DamagedRunError
from wpray.results import load
from wpray.results.merge import merge
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA, trajectory_schema
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder
from wpray.types import ARM_COLUMNS, EEF_ACTION


def test_tables_are_typed_and_in_order(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False, None], [True, True, True]])
    run = load(tmp_path)
    assert run.episodes.schema.equals(EPISODE_SCHEMA, check_metadata=True)
    assert run.decisions.schema.equals(DECISION_SCHEMA, check_metadata=True)
    assert run.episodes["success"].to_pylist() == [True, False, None, True, True, True]
    assert run.trajectory(("fake", 1, 2)).num_rows == run.episodes["num_steps"][5].as_py()
    assert run.info["config"]["task_suite"] == "fake"
    with pytest.raises(BadInputError, match="no trajectory"):
        run.trajectory(("fake", 0, 2))


def test_a_run_under_way_is_read_from_its_parts_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]], merged=False)
    begun = load(tmp_path)
    assert "2 of 2 episodes are read from parts/" in begun.notes[0]
    merge(RunFolder(tmp_path))
    whole = load(tmp_path)
    assert begun.episodes.equals(whole.episodes) and begun.decisions.equals(whole.decisions) and not whole.notes


def test_merged_tables_alone_are_enough(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    assert not RunFolder(tmp_path).parts()
    assert load(tmp_path).episodes.num_rows == 2


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no run .*run\.json"):
        load(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(BadInputError, match="not a run's description"):
        load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "x"}))
    with pytest.raises(DamagedRunError, match="has no config"):
        load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "x", "config": {}}))
    with pytest.raises(BadInputError, match="no episode has finished"):
        load(tmp_path)
    (tmp_path / "episodes.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(BadInputError, match="not readable"):
        load(tmp_path)


def test_a_run_that_was_interrupted_before_its_first_outcome_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "x", "config": {}}))
    merge(RunFolder(tmp_path))
    assert (tmp_path / "episodes.parquet").exists()
    with pytest.raises(BadInputError, match="no episode has finished"):
        load(tmp_path)


def test_videos_are_named_where_their_files_are(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    inside, outside = VideoFolder.of(tmp_path, None), VideoFolder.of(tmp_path, str(tmp_path / "elsewhere"))
    for videos in (inside, outside):
        videos.path.mkdir()
        (videos.path / "rollout_move_the_cube_0_t1_failure.mp4").write_bytes(b"")
    merge(RunFolder(tmp_path), inside)
    paths = load(tmp_path).episodes["video_path"].to_pylist()
    assert paths == [None, "videos/rollout_move_the_cube_0_t1_failure.mp4"]
    merge(RunFolder(tmp_path), outside)
    run = load(tmp_path)
    assert run.video(run.episodes["video_path"][1].as_py()) == outside.path / "rollout_move_the_cube_0_t1_failure.mp4"
    assert run.video(None) is None


def test_in_a_folder_of_several_runs_an_older_video_is_another_run_s(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    shared, row = VideoFolder.of(tmp_path, str(tmp_path / "shared")), load(tmp_path).episodes.to_pylist()[1]
    assert not shared.has(row)
    shared.path.mkdir()
    video = shared.path / "rollout_move_the_cube_0_t1_failure.mp4"
    video.write_bytes(b"")
    assert shared.has(row)
    os.utime(video, times=(0, row["ended_at"].timestamp() - 1))
    assert not shared.has(row)  # so it is rendered anew
    merge(RunFolder(tmp_path), shared)
    assert load(tmp_path).episodes["video_path"].to_pylist() == [None, None]


def test_duckdb_pandas_and_polars_open_the_tables_without_options(tmp_path: Path) -> None:
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    write_run(tmp_path, [[True, False, None]])
    path = tmp_path / "episodes.parquet"
    assert duckdb.sql(f"SELECT avg(success::int) FROM '{path}'").fetchall() == [(0.5,)]
    assert pandas.read_parquet(path)["success"].mean() == 0.5
    assert polars.read_parquet(path)["success"].mean() == 0.5
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path / 'decisions.parquet'}'").fetchall() == [(6,)]


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_nested(kind):
        return [leaf for index in range(kind.num_fields) for leaf in _leaves(kind.field(index).type)]
    return [kind]


SCHEMAS = {
    "episodes": EPISODE_SCHEMA,
    "decisions": DECISION_SCHEMA,
    "trajectory": trajectory_schema(ARM_COLUMNS, EEF_ACTION),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_is_and_has_a_type_that_every_reader_knows(name: str) -> None:
    """Spark 3 refuses nanoseconds and unsigned integers."""
    for field in SCHEMAS[name]:
        assert len(field.metadata[b"description"]) > 5, field.name
        if field.name.endswith("_s"):
            assert field.metadata[b"unit"] == b"s", field.name
        if "steps" in field.name or field.name.startswith(("duration", "qpos", "qvel", "eef_pos", "gripper")):
            assert field.metadata[b"unit"], field.name
        for leaf in _leaves(field.type):
            integer = pa.types.is_signed_integer(leaf) or pa.types.is_boolean(leaf)
            assert integer or leaf in (pa.string(), pa.float32(), pa.float64(), pa.timestamp("us", tz="UTC")), (
                field.name
            )


def test_descriptions_and_plain_encodings_are_in_the_files(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False, None]])
    for name, schema in list(SCHEMAS.items())[:2]:
        with pq.ParquetFile(tmp_path / f"{name}.parquet") as file:
            assert [field.metadata for field in file.schema_arrow] == [field.metadata for field in schema]
            columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
        assert {code for column in columns for code in column.encodings} <= {"PLAIN", "RLE", "RLE_DICTIONARY"}
        assert {column.physical_type for column in columns} <= {
            "BYTE_ARRAY",
            "INT32",
            "INT64",
            "DOUBLE",
            "FLOAT",
            "BOOLEAN",
        }


def test_a_real_episode_is_small() -> None:
    """At most 40 KB for 150 steps in the robot's and the outcome's columns; the simulator's state has its own."""
    recorded = Path(__file__).parents[2] / "notebooks" / "data" / "scripted"
    robot = {"step", "action", "eef_pos", "eef_quat", "gripper_qpos"}
    files = sorted((recorded / "trajectories").glob("*.parquet"))
    assert len(files) == 10
    for path in files:
        metadata = pq.read_metadata(path)
        columns = [metadata.row_group(0).column(index) for index in range(metadata.num_columns)]
        assert robot <= {column.path_in_schema.split(".")[0] for column in columns}
        compressed = sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in robot)
        assert path.stat().st_size <= 40_000 and compressed * 150 / metadata.num_rows <= 40_000
        assert {column.compression for column in columns} == {"ZSTD"}
    episodes = recorded / "episodes.parquet"
    assert episodes.stat().st_size / pq.read_metadata(episodes).num_rows < 2_000
