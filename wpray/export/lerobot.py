"""LeRobotDataset format v3.0: Parquet tables and JSON; the videos lie beside them.

A frame pairs an observation with the action taken next, as policies learn it. A trajectory's row holds an action and
the observation after it, so frame k is the observation of row k - 1 and the action of row k. The wait steps at the
start, in which no policy acts, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wpray.benchmarks.rotation import axis_angle
from wpray.errors import DamagedRunError
from wpray.export.statistics import FeatureStatistics, of_levels, of_numbers
from wpray.results.reader import Run, matrix
from wpray.types import EpisodeRow, FloatArray, IntArray, TrialKey

IMAGE_SIZE = 256
_USUAL_HZ, _USUAL_ROBOT = 20, "panda"  # of runs whose run.json says neither
_VERSION = "v3.0"
_FILES_A_CHUNK = 1000
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_ARM = ("eef_pos", "eef_quat", "gripper_qpos")  # columns of an arm's trajectory, which make the observed state
_ARM_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "finger1", "finger2")
_INDICES = ("frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True, slots=True)
class Features:
    """Properties of the data set that depend on the robot."""

    robot: str
    fps: int  # control steps per second
    action_names: tuple[str, ...]  # of the action's numbers; empty: they have none


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixel levels of some of an episode's images from one camera."""

    levels: IntArray  # (3, 256)
    frames: int


@dataclass(frozen=True, slots=True)
class LeRobotEpisode:
    """Episode of the data set."""

    row: EpisodeRow
    state: FloatArray  # (N, S) observed before each action
    state_names: tuple[str, ...]  # of its numbers
    action: FloatArray  # (N, A)
    skipped: int  # recorded steps (and video frames) before the first frame


def read_episode(run: Run, row: EpisodeRow) -> LeRobotEpisode:
    """Read one episode. Raise BadInputError if it was not recorded, DamagedRunError if its trajectory is damaged."""
    table = run.trajectory(TrialKey.from_row(row))
    names, state = _observed(run, table)
    if not (np.isfinite(state).all() and np.isfinite(matrix(table, "action")).all()):
        raise DamagedRunError(
            f"{run.location}: the trajectory of {row['task_name']} trial {row['trial']} is not all numbers"
        )
    first = max(1, run.info["config"].get("num_steps_wait") or 0)
    return LeRobotEpisode(row, state[first - 1 : -1], names, matrix(table, "action")[first:], first - 1)


def _observed(run: Run, table: pa.Table) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and (N, S) numbers of the observed state: an arm's pose and fingers, or all that `light` records."""
    columns = [column.name for column in run.state_columns if column.record == "light"]
    if set(_ARM) <= set(columns):
        position, quat, fingers = (matrix(table, name) for name in _ARM)
        turns = np.array([axis_angle(float(q[3]), q[:3]) for q in quat]).reshape(-1, 3)
        return _ARM_NAMES, np.concatenate([position, turns, fingers], axis=1)
    parts = {name: matrix(table, name) for name in columns}
    names = tuple(f"{name}{number}" for name, part in parts.items() for number in range(1, part.shape[1] + 1))
    return names, np.concatenate([np.zeros((len(table), 0)), *parts.values()], axis=1)


def features(run: Run) -> Features:
    """Return the run's robot, its control frequency and the names of its actions' numbers."""
    hz = run.info.get("control_hz") or _USUAL_HZ
    return Features(run.info.get("robot") or _USUAL_ROBOT, round(hz), run.action.names)


def pictures_rotated(run: Run, usual: bool) -> bool:
    """Return whether the policy saw pictures turned by 180 degrees; `usual` if it saw none, or some turned."""
    spec = run.info.get("policy_spec", {})
    seen = {camera["rotated"] for camera in spec.get("cameras", {}).values()} if spec.get("images") else set()
    return seen.pop() if len(seen) == 1 else usual


def video_keys(cameras: int) -> list[str]:
    """Return the feature of each camera: the first is the scene's, the second the wrist's."""
    return [f"observation.images.image{number if number > 1 else ''}" for number in range(1, cameras + 1)]


def video_file(key: str, episode: int) -> str:
    """Return the path of an episode's video, relative to the data set."""
    chunk, file = divmod(episode, _FILES_A_CHUNK)
    return _VIDEO.format(video_key=key, chunk_index=chunk, file_index=file)


def write(out: Path, of: Features, episodes: Sequence[LeRobotEpisode], pixels: Sequence[Mapping[str, Pixels]]) -> None:
    """Write the tables. `pixels` holds a mapping by video key for each episode, empty for one without videos."""
    instructions = list(dict.fromkeys(episode.row["instruction"] for episode in episodes))
    tables = _frame_tables(of, episodes, instructions)
    (out / "meta/episodes/chunk-000").mkdir(parents=True)
    (out / "data/chunk-000").mkdir(parents=True)
    with pq.ParquetWriter(
        out / _DATA.format(chunk_index=0, file_index=0), tables[0].schema, compression="zstd"
    ) as writer:
        for table in tables:
            writer.write_table(table)
    rows = [_episode_row(of.fps, *given) for given in zip(episodes, tables, pixels, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), out / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(_task_table(instructions), out / "meta/tasks.parquet")
    _write_json(out / "meta/stats.json", _statistics(pa.concat_tables(tables), _summed(pixels)))
    _write_json(
        out / "meta/info.json", _info(of, episodes[0].state_names, tables, len(instructions), sorted(pixels[0]))
    )


def _frame_schema(episode: LeRobotEpisode) -> pa.Schema:
    return pa.schema(
        [
            pa.field("observation.state", pa.list_(pa.float32(), episode.state.shape[1])),
            pa.field("action", pa.list_(pa.float32(), episode.action.shape[1])),
            pa.field("timestamp", pa.float32()),
            *(pa.field(name, pa.int64()) for name in _INDICES),
        ]
    )


def _frame_tables(of: Features, episodes: Sequence[LeRobotEpisode], instructions: Sequence[str]) -> list[pa.Table]:
    schema, tables, begin = _frame_schema(episodes[0]), [], 0
    for number, episode in enumerate(episodes):
        count = len(episode.action)
        steps = np.arange(count)
        columns = {
            "observation.state": list(episode.state.astype(np.float32)),
            "action": list(episode.action.astype(np.float32)),
            "timestamp": (steps / of.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(count, number),
            "index": begin + steps,
            "task_index": np.full(count, instructions.index(episode.row["instruction"])),
        }
        tables.append(pa.table(columns, schema=schema))
        begin += count
    return tables


def _episode_row(fps: int, episode: LeRobotEpisode, table: pa.Table, pixels: Mapping[str, Pixels]) -> dict[str, Any]:
    number, begin = table["episode_index"][0].as_py(), table["index"][0].as_py()
    chunk, file = divmod(number, _FILES_A_CHUNK)
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.row["instruction"]],
        "length": len(table),
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": begin,
        "dataset_to_index": begin + len(table),
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **{name: episode.row[name] for name in ("suite", "task_id", "trial", "seed", "success")},
    }
    for key in pixels:
        span = (episode.skipped / fps, (episode.skipped + len(table)) / fps)
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        row |= {f"videos/{key}/{name}": value for name, value in zip(names, (chunk, file, *span), strict=True)}
    for feature, found in _statistics(table, pixels).items():
        row |= {f"stats/{feature}/{name}": values for name, values in found.items()}
    return row


def _statistics(table: pa.Table, pixels: Mapping[str, Pixels]) -> dict[str, FeatureStatistics]:
    wide = {name: of_numbers(matrix(table, name)) for name in ("observation.state", "action")}
    flat = {name: of_numbers(table[name].to_numpy()) for name in ("timestamp", *_INDICES)}
    return wide | flat | {key: of_levels(found.levels, found.frames) for key, found in pixels.items()}


def _summed(pixels: Sequence[Mapping[str, Pixels]]) -> dict[str, Pixels]:
    return {
        key: Pixels(np.sum([found[key].levels for found in pixels], axis=0), sum(found[key].frames for found in pixels))
        for key in pixels[0]
    }


def _task_table(instructions: Sequence[str]) -> pa.Table:
    """Return the tasks with their instructions as a pandas index, by which the format finds a task."""
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
    }
    table = pa.table({"task_index": np.arange(len(instructions)), "task": list(instructions)})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def _info(
    of: Features, states: Sequence[str], tables: Sequence[pa.Table], num_tasks: int, videos: Sequence[str]
) -> dict[str, Any]:
    width = tables[0].schema.field("action").type.list_size
    return {
        "codebase_version": _VERSION,
        "robot_type": of.robot,
        "total_episodes": len(tables),
        "total_frames": sum(len(table) for table in tables),
        "total_tasks": num_tasks,
        "chunks_size": _FILES_A_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": of.fps,
        "splits": {"train": f"0:{len(tables)}"},
        "data_path": _DATA,
        "video_path": _VIDEO if videos else None,
        "features": {
            **{key: _video_feature(of.fps) for key in videos},
            "observation.state": {"dtype": "float32", "shape": [len(states)], "names": list(states)},
            "action": {"dtype": "float32", "shape": [width], "names": list(of.action_names) or None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in _INDICES},
        },
    }


def _video_feature(fps: int) -> dict[str, Any]:
    facts = {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
    facts |= {"fps": fps, "channels": 3}
    return {
        "dtype": "video",
        "shape": [IMAGE_SIZE, IMAGE_SIZE, 3],
        "names": ["height", "width", "channels"],
        "info": {**{f"video.{name}": value for name, value in facts.items()}, "has_audio": False},
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n")
