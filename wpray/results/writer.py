"""A run's folder: parts written so that a crash at any instant leaves whole files or none."""

from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import BadInputError, RunStoppedError
from wpray.results.atomic import stopped_by, sync_folder, write_atomic, write_together
from wpray.results.encode import EncodedEpisode
from wpray.results.schema import PART_SCHEMA, TRAJECTORY_CRC32
from wpray.types import Status, TrialKey

_SAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recorded trial came to."""

    status: Status
    num_steps: int


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

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        """Trajectories first, parts last: a part is the sign that its trial is finished. Once this returns, all are.

        A power cut may take the name of a trajectory, but then its part tells `finished` of the loss: so the parts'
        folder alone is synced. Raises DiskFullError when there is no room for all of them, RunStoppedError if the
        folder cannot be written any more; each trial has both files then, or neither.
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

    def part_path(self, key: TrialKey) -> Path:
        """parts/SUITE/TASK_TRIAL.parquet."""
        return Path(self._names(key)[1])

    def trajectory_path(self, key: TrialKey) -> Path:
        """trajectories/SUITE_TASK_TRIAL.parquet."""
        return Path(self._names(key)[0])

    def _names(self, key: TrialKey) -> tuple[str, str]:
        """A trial's trajectory and its part; strings, for the driver: pathlib's objects cost more."""
        suite, number = safe_name(key[0]), f"{key[1]:03d}_{key[2]:05d}.parquet"
        return f"{self.path}/trajectories/{suite}_{number}", f"{self.path}/parts/{suite}/{number}"

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
        """Replaces run.json at once; trajectories written before are safe from a power cut then."""
        trajectories = self.path / "trajectories"
        try:
            if trajectories.exists():
                sync_folder(str(trajectories))
        except OSError as error:
            raise stopped_by(trajectories, error) from error
        write_atomic(self.path / "run.json", (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())

    def _make_way(self, folders: Iterable[str], stale: Iterable[str]) -> None:
        """Makes the folders of parts; removes trajectories of attempts whose driver was killed before their part."""
        try:
            for folder in folders:
                if not os.path.isdir(folder):
                    os.mkdir(folder)
                    sync_folder(os.path.dirname(folder))
            for trajectory in stale:
                Path(trajectory).unlink(missing_ok=True)
        except OSError as error:
            raise stopped_by(self.path, error) from error

    def _readable_rows(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self.parts():
            try:
                row, crc32 = _read_part(path)
                if crc32 is not None:
                    _check_trajectory(self.trajectory_path((row["suite"], row["task_id"], row["trial"])), crc32)
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
        status: Status = _read_part(path)[0]["status"]
    except (pa.ArrowException, OSError, MemoryError, ValueError):
        return None
    return status


def read_checked(path: Path) -> pa.Table:
    """A table of this project's, with its pages' checksums. Raises ArrowException, OSError or ValueError if damaged."""
    return pq.ParquetFile(path, page_checksum_verification=True).read()


def _read_part(path: Path) -> tuple[dict[str, Any], int | None]:
    """A part's row, and its trajectory's CRC-32 if it has one.

    Raises ValueError (Arrow's errors are such, or OSError) for one that no run has written.
    """
    table = read_checked(path)
    if not table.schema.equals(PART_SCHEMA) or table.num_rows != 1:
        raise ValueError("not a part")
    row: dict[str, Any] = table.drop_columns("decisions").to_pylist()[0]
    if row["status"] not in get_args(Status):
        raise ValueError("no such status")
    crc32 = (table.schema.metadata or {}).get(TRAJECTORY_CRC32)
    return row, None if crc32 is None else int(crc32)


def _check_trajectory(path: Path, crc32: int) -> None:
    if zlib.crc32(path.read_bytes()) != crc32:
        raise ValueError("not this episode's")


def _set_aside(path: Path) -> None:
    """Out of the way, not deleted: a damaged file may still tell somebody something."""
    path.replace(path.with_name(path.name + ".damaged"))
