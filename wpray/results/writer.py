"""A run's folder: parts written so that a crash at any instant leaves whole files or none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import BadInputError, PausedError, RunStoppedError
from wpray.results.encode import EncodedEpisode
from wpray.results.schema import PART_SCHEMA
from wpray.types import Status, TrialKey

_SAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recorded trial came to."""

    status: Status
    num_steps: int


class DiskFullError(PausedError):
    """There is no room for a result; what was written before is intact."""


@lru_cache(maxsize=256)
def safe_name(text: str) -> str:
    """`text` as a file name that cannot leave its folder."""
    return _SAFE.sub("_", text).lstrip(".")[:150] or "_"


class RunFolder:
    """One run's results on a local or shared file system; one driver at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def place(self) -> str:
        """Where the results end up, for people."""
        return str(self.path)

    def top(self) -> set[str]:
        """Names of what lies directly in it. Raises BadInputError if it cannot be read."""
        try:
            return {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise BadInputError(
                f"output_dir: cannot read the folder {self.path} ({error.strerror}); choose another"
            ) from error

    def has_parts(self) -> bool:
        """Whether any trial has a row in it."""
        return any((self.path / "parts").glob("*/*.parquet"))

    def open(self) -> None:
        """Creates the folder and takes its lock, which dies with this process.

        Raises BadInputError if the folder cannot be written or another driver is at work in it.
        """
        try:
            self._make_folders()
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        """Whether a driver is at work in it now."""
        try:
            with (self.path / ".lock").open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def deliver(self) -> None:
        """Brings everything to `place`, at a run's end: it is there."""

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_episode(self, episode: EncodedEpisode) -> None:
        """Trajectory first, part last: the part is the sign that the trial is finished.

        Raises DiskFullError, leaving neither half behind, RunStoppedError if the folder cannot be written any more.
        """
        path, trajectory = self.part_path(episode.key), self.trajectory_path(episode.key)
        try:
            if episode.trajectory is None:
                trajectory.unlink(missing_ok=True)  # of an attempt whose driver was killed before its part was written
            else:
                write_atomic(trajectory, episode.trajectory)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, episode.part)
        except OSError as error:
            trajectory.unlink(missing_ok=True)
            raise stopped_by(path, error) from error
        except RunStoppedError:
            trajectory.unlink(missing_ok=True)
            raise

    def part_path(self, key: TrialKey) -> Path:
        """parts/SUITE/TASK_TRIAL.parquet."""
        suite, task_id, trial = key
        return self.path / "parts" / safe_name(suite) / f"{task_id:03d}_{trial:05d}.parquet"

    def trajectory_path(self, key: TrialKey) -> Path:
        """trajectories/SUITE_TASK_TRIAL.parquet."""
        suite, task_id, trial = key
        return self.path / "trajectories" / f"{safe_name(suite)}_{task_id:03d}_{trial:05d}.parquet"

    def parts(self) -> list[Path]:
        """Every finished trial's part, in (suite, task, trial) order."""
        return sorted((self.path / "parts").glob("*/*.parquet"))

    def finished(self) -> dict[TrialKey, Outcome]:
        """Outcomes of the trials that have one; damaged files are set aside so that their trials run again.

        An error row does not count as finished: the next run tries that trial again.
        """
        found: dict[TrialKey, Outcome] = {}
        for path, row in self._readable_rows():
            key = (row["suite"], row["task_id"], row["trial"])
            if path != self.part_path(key):
                _set_aside(path)
            elif row["status"] == "error":
                path.unlink()
            else:
                found[key] = Outcome(row["status"], row["num_steps"])
        return found

    def read_info(self) -> dict[str, Any] | None:
        """run.json, or None if there is none. Raises BadInputError if it is not ours."""
        path = self.path / "run.json"
        try:
            return parse_info(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadInputError(f"{path}: not readable ({error}); choose another output_dir") from error

    def write_info(self, data: dict[str, Any]) -> None:
        """Replaces run.json at once."""
        write_atomic(self.path / "run.json", (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())

    def _readable_rows(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self.parts():
            try:
                row = _read_part(path)
                trajectory = self.trajectory_path((row["suite"], row["task_id"], row["trial"]))
                if trajectory.exists():
                    _check_trajectory(trajectory, row["num_steps"])
            except (pa.ArrowException, OSError, MemoryError, ValueError):
                _set_aside(path)
                continue
            yield path, row

    def _make_folders(self) -> None:
        for name in ("parts", "trajectories"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def _remove_half_written(self) -> None:
        """What a driver that died while it wrote has left: call it with the lock held."""
        for pattern in (".*.tmp", "parts/*/.*.tmp", "trajectories/.*.tmp"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)


def parse_info(data: bytes, name: str) -> dict[str, Any]:
    """What a run.json, `name` for people, says. Raises BadInputError if it is none."""
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{name}: not readable ({error}); choose another output_dir") from error
    if not isinstance(info, dict):
        raise BadInputError(f"{name}: not a run's description; choose another output_dir")
    return info


def part_status(path: Path) -> Status | None:
    """What a part says its trial came to; None if there is none, or it is damaged."""
    try:
        status: Status = _read_part(path)["status"]
    except (pa.ArrowException, OSError, MemoryError, ValueError):
        return None
    return status


def read_checked(path: Path) -> pa.Table:
    """A table of this project's, with its pages' checksums. Raises ArrowException, OSError or ValueError if damaged."""
    return pq.ParquetFile(path, page_checksum_verification=True).read()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all, and survives a power cut once this returns.

    Raises DiskFullError when there is no room, RunStoppedError if the disk does not take it for another reason.
    """
    folder, name = os.path.split(path)  # strings: twice an episode in the driver, pathlib's objects cost more
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering=0) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise stopped_by(path, error) from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a file that is complete its name, so that it survives a power cut once this returns. Raises OSError."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(str(path.parent))


def stopped_by(path: Path, error: OSError) -> RunStoppedError:
    """What stops a run whose file `path` cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no room left for {path}")
    return RunStoppedError(f"cannot write {path} ({error.strerror or error}); the same command goes on when it can be")


def _read_part(path: Path) -> dict[str, Any]:
    """A part's row; raises ValueError (Arrow's errors are such, or OSError) for one that no run has written."""
    table = read_checked(path)
    if not table.schema.equals(PART_SCHEMA) or table.num_rows != 1:
        raise ValueError("not a part")
    row: dict[str, Any] = table.drop_columns("decisions").to_pylist()[0]
    if row["status"] not in get_args(Status):
        raise ValueError("no such status")
    return row


def _check_trajectory(path: Path, num_steps: int) -> None:
    if read_checked(path).num_rows != num_steps:
        raise ValueError("not this episode's")


def _write_all(file: IO[bytes], data: bytes) -> None:
    """A disk that is nearly full takes a part of it before it refuses the rest."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path) -> None:
    """Out of the way, not deleted: a damaged file may still tell somebody something."""
    path.replace(path.with_name(path.name + ".damaged"))
