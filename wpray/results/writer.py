"""Run folder, whose parts are written so that a crash at any instant leaves whole files or none."""

from __future__ import annotations

import itertools
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wpray.errors import BadInputError, RunStoppedError
from wpray.results.atomic import stopped_by, sync_folder, write_atomic, write_together
from wpray.results.checks import parse_info
from wpray.results.columns import ColumnsError
from wpray.results.encode import EncodedEpisode
from wpray.results.lock import FolderLock, is_locked
from wpray.results.merged import DECISIONS, EPISODES, MergedTables, check_table, rank
from wpray.results.names import part_name, safe_name
from wpray.results.parts import read_part
from wpray.types import EpisodeStatus, TrialKey

__all__ = ["Outcome", "RunFolder", "parse_info", "part_status", "safe_name"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a recorded trial."""

    status: EpisodeStatus
    num_steps: int
    retried: tuple[str, ...] = ()  # kinds of the errors of the attempts before it


class RunFolder:
    """Results of a run on a local or shared file system, written by one driver at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @property
    def location(self) -> str:
        """Folder of the results, for messages."""
        return str(self.path)

    def list_names(self) -> set[str]:
        """Return the names in the folder. Raise BadInputError if it cannot be read."""
        try:
            return {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise BadInputError(
                f"output_dir: cannot read the folder {self.path} ({error.strerror}); choose another"
            ) from error

    def has_rows(self) -> bool:
        """Return True if a trial may have a row in the folder."""
        return (self.path / EPISODES).exists() or any((self.path / "parts").glob("*/*.parquet"))

    def open(self) -> None:
        """Create the folder and take its lock, which ends with this process.

        Raise BadInputError if the folder cannot be written or another driver holds its lock.
        """
        try:
            self._make_folders()
            self._lock = FolderLock(self.path)
            self._remove_half_written()
        except BlockingIOError as error:
            self.close()
            raise BadInputError(
                f"output_dir: another driver is writing to {self.path}; wait or choose another"
            ) from error
        except OSError as error:
            self.close()
            raise BadInputError(
                f"output_dir: cannot write to {self.path} ({error.strerror}); choose another"
            ) from error

    def is_locked(self) -> bool:
        """Return True if a driver holds the folder's lock."""
        return is_locked(self.path)

    def flush(self) -> None:
        """Do nothing at a run's end, because the results are in `location` already."""

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        """Write trajectories, then parts, because a part marks its trial as finished.

        A power cut may remove the name of a trajectory, but then its part reveals the loss to `finished`, so only the
        parts' folders are synced. Raise DiskFullError if the disk is full, RunStoppedError if the folder cannot be
        written any more; each trial then has both files or neither.
        """
        names = [self._names(episode.key) for episode in episodes]
        trajectories, parts, stale = [], [], []
        for (trajectory, part), episode in zip(names, episodes, strict=True):
            parts.append((part, episode.part))
            if episode.trajectory is None:
                stale.append(trajectory)
            else:
                trajectories.append((trajectory, episode.trajectory))
        folders = {os.path.dirname(part) for _, part in names}
        try:
            self._make_way(folders, stale)
            write_together([*trajectories, *parts], folders)
        except RunStoppedError:
            for trajectory, part in names:
                if not os.path.exists(part):
                    Path(trajectory).unlink(missing_ok=True)
            raise

    def part_path(self, key: tuple[str, int, int]) -> Path:
        """Return parts/SUITE/TASK_TRIAL.parquet."""
        return Path(self._names(key)[1])

    def trajectory_path(self, key: tuple[str, int, int]) -> Path:
        """Return trajectories/SUITE_TASK_TRIAL.parquet."""
        return Path(self._names(key)[0])

    def _names(self, key: tuple[str, int, int]) -> tuple[str, str]:
        """Return the names of a trial's trajectory and part, as strings because paths cost the driver more."""
        name = part_name(key)
        return f"{self.path}/trajectories/{name.replace('/', '_')}", f"{self.path}/parts/{name}"

    def parts(self) -> list[Path]:
        """Return the parts of the trials that ended since the last merge, in (suite, task, trial) order."""
        return sorted((self.path / "parts").glob("*/*.parquet"))

    def finished(self) -> dict[TrialKey, Outcome]:
        """Return the outcomes of finished trials; damaged files are set aside so that their trials run again.

        A trial with an error row is not finished: the next run tries it again. Raise BadInputError for whole files of
        a version that this one cannot continue.
        """
        rows: dict[TrialKey, dict[str, Any]] = {}
        for key, row in itertools.chain(self._merged_rows(), self._part_rows()):
            if key not in rows or rank(row) >= rank(rows[key]):
                rows[key] = row
        outcomes = {key: row for key, row in rows.items() if row["status"] != "error"}
        return {key: _outcome(row) for key, row in outcomes.items()}

    def read_info(self) -> dict[str, Any] | None:
        """Return run.json, or None if there is none. Raise BadInputError if it is not a run's."""
        path = self.path / "run.json"
        try:
            return parse_info(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadInputError(f"{path}: not readable ({error}); choose another output_dir") from error

    def write_info(self, data: dict[str, Any]) -> None:
        """Replace run.json at once; trajectories written before then survive a power cut."""
        trajectories = self.path / "trajectories"
        try:
            if trajectories.exists():
                sync_folder(str(trajectories))
        except OSError as error:
            raise stopped_by(trajectories, error) from error
        write_atomic(self.path / "run.json", (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())

    def _make_way(self, folders: Iterable[str], stale: Iterable[str]) -> None:
        """Create the folders of parts, and remove trajectories whose driver was killed before their part."""
        try:
            for folder in folders:
                if not os.path.isdir(folder):
                    os.mkdir(folder)
                    sync_folder(os.path.dirname(folder))
            for trajectory in stale:
                Path(trajectory).unlink(missing_ok=True)
        except OSError as error:
            raise stopped_by(self.path, error) from error

    def _part_rows(self) -> Iterator[tuple[TrialKey, dict[str, Any]]]:
        """Yield the rows of every whole part; set the others aside."""
        for path in self.parts():
            try:
                row = _plain(read_part(path).drop_columns("decisions"))[0]
                key = TrialKey.from_row(row)
                if path != self.part_path(key):
                    raise ValueError(f"it is of {key}, not of the trial that its name says")
                self._check_trajectory(key, row)
            except BadInputError:  # a whole part of an unusable version
                raise
            except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
                _set_aside(path, error, "its trial runs again")
                continue
            yield key, row

    def _merged_rows(self) -> Iterator[tuple[TrialKey, dict[str, Any]]]:
        """Yield the merged table's rows, without those whose trajectory is lost; set a damaged table aside."""
        self._set_damaged_tables_aside()
        merged = MergedTables.read(self.path)
        for row in _plain(merged.episodes) if merged is not None else []:
            key = TrialKey.from_row(row)
            try:
                self._check_trajectory(key, row)
            except (OSError, ValueError) as error:
                _LOG.warning("%s: %s; its trial runs again", self.trajectory_path(key), _reason(error))
                continue
            yield key, row

    def _set_damaged_tables_aside(self) -> None:
        """Set damaged tables aside. Raise BadInputError for a whole table whose columns are not a run's."""
        for name, loss in ((EPISODES, "its trials run again"), (DECISIONS, "its decisions are lost, no outcome is")):
            try:
                check_table(self.path / name)
            except FileNotFoundError:
                continue
            except ColumnsError as error:
                raise BadInputError(
                    f"{self.path / name}: {error}, so no run has written it; put the run's own file back"
                ) from error
            except BadInputError:
                raise
            except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
                _set_aside(self.path / name, error, loss)

    def _check_trajectory(self, key: TrialKey, row: Mapping[str, Any]) -> None:
        """Raise OSError or ValueError if the row's trajectory is missing or not the one recorded with it."""
        crc32 = row["trajectory_crc32"]
        if crc32 is not None and zlib.crc32(self.trajectory_path(key).read_bytes()) != crc32:
            raise ValueError("the trajectory is damaged, or of another attempt")

    def _make_folders(self) -> None:
        for name in ("parts", "trajectories"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def _remove_half_written(self) -> None:
        """Remove files that a driver was writing when it died. The caller holds the lock."""
        for pattern in (".*.tmp", "parts/*/.*.tmp", "trajectories/.*.tmp"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)


def part_status(path: Path) -> EpisodeStatus | None:
    """Return the outcome in a part; None if it is missing or damaged."""
    try:
        status: EpisodeStatus = read_part(path)["status"][0].as_py()
    except (pa.ArrowException, OSError, MemoryError, ValueError):
        return None
    return status


def _plain(episodes: pa.Table) -> list[dict[str, Any]]:
    names = ("suite", "task_id", "trial", "status", "num_steps", "ended_at", "trajectory_crc32", "attempt_errors")
    rows: list[dict[str, Any]] = episodes.select(names).to_pylist()
    return rows


def _outcome(row: Mapping[str, Any]) -> Outcome:
    retried = tuple(error["kind"] for error in row["attempt_errors"] or ())
    return Outcome(row["status"], row["num_steps"], retried)


def _set_aside(path: Path, error: BaseException, loss: str) -> None:
    """Move a damaged file aside without deleting it, because it may still help to find the cause."""
    aside = path.with_name(path.name + ".damaged")
    path.replace(aside)
    _LOG.warning("%s is damaged (%s): kept as %s, and %s", path, _reason(error), aside.name, loss)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
