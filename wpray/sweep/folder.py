"""Folder of a sweep: the runs of its checkpoints, and what was asked of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from wpray.benchmarks.factory import group_name
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import outcome_fields
from wpray.results.atomic import write_atomic
from wpray.results.lock import FolderLock
from wpray.results.names import safe_name
from wpray.run.output import ROOT, new_path
from wpray.storage.url import location_of
from wpray.sweep.grid import Grid

FILE = "sweep.json"
_VERSION = 1


class SweepFolder:
    """Folder of a sweep on a file system, written by one command at a time."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path, self._asked = path, asked

    def run_path(self, name: str) -> Path:
        """Return the folder of a checkpoint's run."""
        return self.path / "runs" / name

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Create the folder and hold its lock. Raises BadInputError if it cannot be written or another sweep has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
        except BlockingIOError as error:
            raise BadInputError(
                f"output_dir: another sweep is writing to {self.path}; wait or choose another"
            ) from error
        except OSError as error:
            reason = error.strerror
            raise BadInputError(f"output_dir: cannot write to {self.path} ({reason}); choose another") from error
        with lock:
            yield

    def known_paths(self, settings: Sequence[str]) -> list[dict[str, str]]:
        """Return the paths by setting of the checkpoints that an earlier command has named, which may be gone now."""
        listed = (_read(self.path) or {}).get("checkpoints")
        paths = [one.get("paths") for one in listed or () if isinstance(one, dict)]
        whole = [one for one in paths if isinstance(one, dict) and one.keys() == set(settings)]
        return [{name: str(one[name]) for name in settings} for one in whole]

    def save(self, state: str, said: Mapping[str, Any]) -> None:
        """Write sweep.json; `state` is running, finished or stopped."""
        data = {"schema_version": _VERSION, "state": state, "asked": self._asked, **said}
        write_atomic(self.path / FILE, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


def choose_folder(grid: Grid, config: Config, rules: Mapping[str, Any]) -> SweepFolder:
    """Return the configured folder; else the newest unfinished one of the same sweep; else a new one under runs/.

    Nothing is created. Raises BadInputError if the configured one holds something else.
    """
    asked = _asked(grid, config, rules)
    if config.output_dir is not None:
        place = location_of(config.output_dir)
        if not isinstance(place, Path):
            raise BadInputError(f"output_dir: {place} is in a store; a sweep's folder is one of the file system")
        _check(place, asked, config.resume)
        return SweepFolder(place, asked)
    stem = safe_name(f"sweep_{group_name(config.suites, config.benchmark)}_{config.policy}")
    if config.resume != "never":
        for path in sorted(ROOT.glob(f"{stem}_*"), reverse=True):
            known = _read(path)
            if known is not None and known.get("state") != "finished" and known.get("asked") == asked:
                return SweepFolder(path, asked)
    if config.resume == "only":
        raise BadInputError(f"resume only: {ROOT} holds no unfinished sweep of these settings; use resume auto")
    return SweepFolder(new_path(ROOT / f"{stem}_{datetime.now():%Y%m%d-%H%M%S}", claim=False), asked)


def _check(path: Path, asked: Mapping[str, Any], resume: str) -> None:
    """Raise BadInputError if the folder does not hold this sweep, or nothing."""
    try:
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    except OSError as error:
        raise BadInputError(f"output_dir: cannot read the folder {path} ({error.strerror}); choose another") from error
    if names - {".lock", "runs"} and FILE not in names:
        raise BadInputError(f"output_dir: {path} holds files but no {FILE}, so no sweep; choose another output_dir")
    known = _read(path)
    if resume == "only" and known is None:
        raise BadInputError(f"resume only: {path} holds no sweep to go on with; use resume auto")
    if known is None:
        return
    if resume == "never":
        raise BadInputError(f"output_dir: {path} holds a sweep's results; choose another, or use resume auto")
    theirs = known.get("asked")
    theirs = theirs if isinstance(theirs, dict) else {}
    different = [name for name in asked if theirs.get(name) != asked[name]]
    if different:
        raise BadInputError(f"output_dir: {path} holds another sweep, which differs in: {_listed(theirs, asked)}")


def _listed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return the settings that differ, with both values."""
    flat = [{key: value for part in asked.values() for key, value in (part or {}).items()} for asked in (theirs, ours)]
    names = sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))
    return ", ".join(f"{name} ({flat[0].get(name)!r} there, {flat[1].get(name)!r} here)" for name in names[:5])


def _read(path: Path) -> dict[str, Any] | None:
    """Return sweep.json; None if there is none. Raises BadInputError if it is none of a sweep."""
    file = path / FILE
    try:
        known = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{file}: not readable ({error}); choose another output_dir") from error
    if not isinstance(known, dict) or not isinstance(known.get("asked"), dict):
        raise BadInputError(f"{file}: does not describe a sweep; choose another output_dir")
    return known


def _asked(grid: Grid, config: Config, rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a sweep this one, as JSON reads it again."""
    swept = {name.partition(".")[0] for name in grid.patterns} - {"policy_args"}
    fields = {name: value for name, value in outcome_fields(config).items() if name not in swept}
    asked = {"settings": fields, "patterns": {name: list(paths) for name, paths in grid.patterns.items()}}
    return dict(json.loads(json.dumps({**asked, "rules": dict(rules)})))
