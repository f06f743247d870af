"""Reader of a result folder as typed Arrow tables."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import BadInputError, DamagedRunError
from wpray.results.checks import check_decisions, check_episodes, check_info
from wpray.results.columns import check_version, conform, version_of
from wpray.results.declarations import action_of, state_columns_of
from wpray.results.merged import DECISIONS, EPISODES, MergedTables, Overlay, joined
from wpray.results.remote import RemoteRun
from wpray.results.schema import trajectory_schema
from wpray.results.writer import RunFolder, parse_info
from wpray.storage.url import location_of
from wpray.types import ActionSpec, FloatArray, StateColumn, TrialKey

_LOG = logging.getLogger(__name__)
_TRIES = 3


@dataclass(frozen=True)
class Run:
    """Results of a run, in (suite, task, trial) order."""

    path: Path
    info: dict[str, Any]  # run.json
    episodes: pa.Table  # EPISODE_SCHEMA: one row per episode
    decisions: pa.Table  # DECISION_SCHEMA: one row per policy call
    remote: RemoteRun | None = (
        None  # source of the copy in `path`; trajectories and videos are downloaded when they are read
    )
    notes: tuple[str, ...] = ()  # lines about missing or unmerged parts, which `load` logged

    @cached_property
    def state_columns(self) -> tuple[StateColumn, ...]:
        """State columns of its benchmark, as run.json names them."""
        return state_columns_of(self.info)

    @cached_property
    def action(self) -> ActionSpec:
        """Meaning of the actions in trajectories, as run.json says."""
        return action_of(self.info)

    @property
    def location(self) -> str:
        """Folder or URL, for messages."""
        return str(self.path if self.remote is None else self.remote.store.url)

    @cached_property
    def checkpoint(self) -> str | None:
        """Checkpoint that the policy answered from; None if it names none."""
        return next((str(named) for named in self.episodes["checkpoint"].to_pylist() if named), None)

    def trajectory(self, key: tuple[str, int, int], columns: list[str] | None = None) -> pa.Table:
        """Return the control steps of the episode `(suite, task_id, trial)`, with all columns or the named ones.

        Raise BadInputError if none was recorded (an error, or `record: none`), DamagedRunError if it is not readable.
        """
        path = self.trajectory_file(key)
        if path is None:
            raise BadInputError(
                f"{self.location}: no trajectory of {TrialKey(*key)}; was it an error, or the run's record: none?"
            )
        crc32, steps = self._known.get(TrialKey(*key), (None, None))
        known = trajectory_schema([column for column in self.state_columns if column.record == "light"], self.action)
        table = _read_trajectory(path, columns, crc32, known)
        if steps is not None and len(table) != steps:
            raise DamagedRunError(f"{path}: has {len(table)} of the episode's {steps} steps; its trial must run again")
        return table

    @cached_property
    def _known(self) -> dict[TrialKey, tuple[int | None, int | None]]:
        """CRC-32 of the trajectory's file and number of steps, by episode."""
        names = ("suite", "task_id", "trial", "trajectory_crc32", "num_steps")
        rows = zip(*(self.episodes[name].to_pylist() for name in names), strict=True)
        return {TrialKey(*key): (crc32, steps) for *key, crc32, steps in rows}

    def trajectory_file(self, key: tuple[str, int, int]) -> Path | None:
        """Return the file of an episode's trajectory; None if there is none."""
        path = self._brought(RunFolder(self.path).trajectory_path(key))
        return path if path.exists() else None

    def video(self, video_path: str | None) -> Path | None:
        """Return the file of an episode's `video_path`; None if there is none."""
        if video_path is None:
            return None
        path = self._brought(self.path / video_path)  # an absolute path is kept
        return path if path.exists() else None

    def _brought(self, path: Path) -> Path:
        if self.remote is not None and path.is_relative_to(self.path) and ".." not in path.parts:
            self.remote.download(path.relative_to(self.path).as_posix())
        return path


def load(run_dir: str | Path) -> Run:
    """Return the results in `run_dir`, also of a run that is in progress or was killed before it merged its parts.

    `run_dir` may be a store's URL: tables are copied to a cache on this disk (~/.cache/wpray).
    Columns that the run's version did not have are null. Raise DamagedRunError if there is no run or its files are
    damaged, NewerSchemaError if a newer version wrote them, BadInputError if a store does not answer.
    """
    try:
        place = location_of(run_dir)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise DamagedRunError(f"{str(run_dir)[:200]!r} is no name of a folder ({error})") from error
    if isinstance(place, Path):
        return _load(place, None)
    remote = RemoteRun.of(place)
    return _load(remote.copy, remote)


def matrix(table: pa.Table, column: str) -> FloatArray:
    """Return a copy (rows, width) of a trajectory's vector column, such as `eef_pos`."""
    flat = table[column].combine_chunks().flatten().to_numpy()
    return np.array(flat, dtype=np.float64).reshape(table.num_rows, -1)


def _load(path: Path, remote: RemoteRun | None) -> Run:
    name = f"{path / 'run.json'}"
    try:
        if (path / "run.json").exists() and not (path / "run.json").is_file():
            raise ValueError("its run.json is no file")  # reading a pipe would wait forever
        info = parse_info((path / "run.json").read_bytes(), name)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise DamagedRunError(f"{path}: holds no run ({error}); name a folder that has a run.json") from error
    check_info(info, name)
    episodes, decisions, notes = _read_whole(path)
    for note in notes:
        _LOG.warning("%s", note)
    return Run(path, info, episodes, decisions, remote, tuple(notes))


def _read_whole(path: Path) -> tuple[pa.Table, pa.Table, list[str]]:
    """Read the tables, and read them again if the driver merged and removed parts meanwhile."""
    for left in reversed(range(_TRIES)):
        try:
            return _tables(path)
        except FileNotFoundError as error:
            if left == 0:
                raise DamagedRunError(f"{path}: {error.filename} has gone while it was read; try again") from error
        except BadInputError:
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedRunError(
                f"{path}: its tables are not readable ({reason}); the command that made the run repairs it"
            ) from error
    raise AssertionError("the last try returns or raises")


def _tables(path: Path) -> tuple[pa.Table, pa.Table, list[str]]:
    base, parts = MergedTables.read(path), RunFolder(path).parts()
    if not parts and (base is None or not len(base.episodes)):
        raise DamagedRunError(f"{path}: no episode has finished yet; try again later")
    overlay = Overlay(base, parts)
    groups = list(overlay.groups())
    episodes, decisions = (joined([group[index] for group in groups]) for index in (0, 1))
    check_episodes(episodes, str(path / EPISODES))
    notes = []
    if overlay.unmerged:
        notes.append(
            f"{path}: {overlay.unmerged} of {len(episodes)} episodes are read from parts/, because the run is "
            "under way or was killed before it merged them"
        )
    if base is not None and not base.belong_together and len(parts) < len(episodes):
        decisions, lost = _without_others(base, decisions, parts)
        notes.append(f"{path}: {DECISIONS} {lost}; what needs decisions is left out")
    if overlay.strays:
        notes.append(f"{path / DECISIONS}: {overlay.strays} decisions of episodes that have no row are left out")
    check_decisions(decisions, str(path / DECISIONS))
    return episodes, decisions, notes


def _without_others(base: MergedTables, decisions: pa.Table, parts: list[Path]) -> tuple[pa.Table, str]:
    """Drop the decisions of another merge; a kill may have left parts of the same trials."""
    if base.decisions is None:
        return decisions, "is missing"
    return (decisions if parts else decisions.slice(0, 0)), f"is of another merge than {EPISODES}"


def _read_trajectory(path: Path, columns: list[str] | None, crc32: int | None, schema: pa.Schema) -> pa.Table:
    try:
        data = path.read_bytes()
        if crc32 is not None and zlib.crc32(data) != crc32:
            raise ValueError("its content is not what was recorded")
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            check_version(version_of(file.schema_arrow), str(path))
            table = file.read(columns=columns)
        known = pa.schema([field for field in schema if columns is None or field.name in columns])
        return conform(table, known).replace_schema_metadata(table.schema.metadata)
    except BadInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedRunError(f"{path}: the trajectory is damaged ({reason}); its trial must run again") from error
