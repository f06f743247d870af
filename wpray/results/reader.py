"""A result folder as typed Arrow tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import BadInputError
from wpray.results.merge import decision_rows, episode_rows, read_parts
from wpray.results.remote import RemoteRun
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA
from wpray.results.writer import RunFolder
from wpray.storage.url import place_of
from wpray.types import FloatArray, TrialKey


@dataclass(frozen=True)
class Run:
    """A run's results, in (suite, task, trial) order."""

    path: Path
    info: dict[str, Any]  # run.json
    episodes: pa.Table  # EPISODE_SCHEMA: a row an episode
    decisions: pa.Table  # DECISION_SCHEMA: a row a policy call
    remote: RemoteRun | None = None  # whose copy `path` is: trajectories and videos come when they are asked for

    @property
    def place(self) -> str:
        """Folder or URL, for people."""
        return str(self.path if self.remote is None else self.remote.store.url)

    def trajectory(self, key: TrialKey) -> pa.Table:
        """The control steps of the episode `(suite, task_id, trial)`.

        Raises BadInputError if none was recorded (an error, or `record: none`).
        """
        path = self.trajectory_file(key)
        if path is None:
            raise BadInputError(f"{self.place}: no trajectory of {key}; was it an error, or the run's record: none?")
        return _read(path, None)

    def trajectory_file(self, key: TrialKey) -> Path | None:
        """Where they are recorded; None if they are not."""
        path = self._brought(RunFolder(self.path).trajectory_path(key))
        return path if path.exists() else None

    def video(self, video_path: str | None) -> Path | None:
        """Where the file behind an episode's `video_path` is; None if there is none."""
        if video_path is None:
            return None
        path = self._brought(self.path / video_path)  # an absolute path stays as it is
        return path if path.exists() else None

    def _brought(self, path: Path) -> Path:
        if self.remote is not None and path.is_relative_to(self.path) and ".." not in path.parts:
            self.remote.bring(path.relative_to(self.path).as_posix())
        return path


def load(run_dir: str | Path) -> Run:
    """The results in `run_dir`, also of a run that is under way or was killed before it merged its parts.

    `run_dir` may be a store's URL: tables are copied to a cache on this disk (~/.cache/wpray).
    Raises BadInputError if there is no run, or its tables are not readable.
    """
    place = place_of(run_dir)
    if isinstance(place, Path):
        return _load(place, None)
    remote = RemoteRun.of(place)
    return _load(remote.copy, remote)


def matrix(table: pa.Table, column: str) -> FloatArray:
    """(rows, width) of a trajectory's vector column, such as `eef_pos`; a copy."""
    flat = table[column].combine_chunks().flatten().to_numpy()
    return np.array(flat, dtype=np.float64).reshape(table.num_rows, -1)


def _load(path: Path, remote: RemoteRun | None) -> Run:
    try:
        info = json.loads((path / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: holds no run ({error}); name a folder that has a run.json") from error
    if not isinstance(info, dict):
        raise BadInputError(f"{path}: its run.json does not describe a run; name another folder")
    episodes, decisions = _tables(path)
    return Run(path, info, episodes, decisions, remote)


def _tables(path: Path) -> tuple[pa.Table, pa.Table]:
    parts, merged = RunFolder(path).parts(), path / "episodes.parquet"
    try:
        if not parts and not (merged.exists() and pq.read_metadata(merged).num_rows):
            raise BadInputError(f"{path}: no episode has finished yet; try again later")
        if merged.exists() and (not parts or pq.read_metadata(merged).num_rows == len(parts)):
            return _read(merged, EPISODE_SCHEMA), _read(path / "decisions.parquet", DECISION_SCHEMA)
        table = read_parts(parts)
        return episode_rows(table), decision_rows(table)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadInputError(f"{path}: its tables are not readable ({error}); run the same command again") from error


def _read(path: Path, schema: pa.Schema | None) -> pa.Table:
    try:
        table = pq.read_table(path)
        return table if schema is None else table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{path}: not readable as this version's table ({reason})") from error
