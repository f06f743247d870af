"""Run folder whose results go to a store; they are written locally first, so that a crash leaves whole files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from wpray.errors import BadInputError, RunStoppedError
from wpray.results.atomic import put_in_place
from wpray.results.encode import EncodedEpisode
from wpray.results.merged import DECISIONS, EPISODES, MergedTables
from wpray.results.unpack import unpack
from wpray.results.writer import Outcome, RunFolder, parse_info, part_status, safe_name
from wpray.storage.fetch import fetch
from wpray.storage.lease import Lease
from wpray.storage.store import Store, StoreError
from wpray.storage.uploader import Uploader
from wpray.storage.url import StoreUrl
from wpray.types import TrialKey

_LOG = logging.getLogger(__name__)
_ROOT = Path("runs")
_INFO, _RUN_LOG = "run.json", "run.log"
# Files that a run downloads from a store. No such name can point outside the folder.
PART = re.compile(r"parts/[A-Za-z0-9_-][\w.-]*/\d{3,}_\d{5,}\.parquet", re.ASCII)
_BESIDE = re.compile(r"(trajectories/[A-Za-z0-9_-][\w.-]*\.parquet|videos/[A-Za-z0-9_-][\w.-]*\.mp4)", re.ASCII)
_MADE_AT_THE_END = (EPISODES, DECISIONS, "report.html", _RUN_LOG)
_PATIENCE_AFTER_AN_ERROR_S = 20.0


def staging_path(url: StoreUrl) -> Path:
    """Return the local staging folder of a store, which is the same for the same URL."""
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:8]
    return _ROOT / f"{safe_name(url.base)}-{digest}"


class MirroredFolder(RunFolder):
    """Staging folder and store. The store counts, because the next driver may run on another machine.

    Finished files are uploaded if the store lacks them, and downloaded if the staging folder lacks them.
    """

    def __init__(self, url: StoreUrl) -> None:
        """Connect to the store. Raise BadInputError if it cannot be reached."""
        super().__init__(staging_path(url))
        self._store = Store.connect(url)
        self._lease = Lease(self._store)
        self._uploader: Uploader | None = None
        self._there: dict[str, int] = {}  # files of the store and their sizes when this run began
        self._parts_there: set[str] = set()  # names of parts that are in the store or queued for it
        self._is_announced = self._is_flushed = False

    @property
    def location(self) -> str:
        """URL of the store."""
        return str(self._store.url)

    def list_names(self) -> set[str]:
        """Return the names directly under the URL."""
        with _as_bad_input():
            return {name for name in self._store.list_names() if not name.startswith(".")}

    def has_rows(self) -> bool:
        """Return True if a trial may have a row in the store."""
        return bool({"parts", EPISODES} & self.list_names())

    def open(self) -> None:
        """Take the folder's lock and the store's lease, and replace the local run.json by the store's.

        Raise BadInputError if another driver holds one of them, or the store fails.
        """
        super().open()
        with contextlib.ExitStack() as unless_opened, _as_bad_input():
            unless_opened.callback(self.close)
            self._lease.take()
            self._forget_another_run()
            self._there = self._store.sizes()
            fetch(self._store, [name for name in (_INFO, _RUN_LOG) if self._is_newer_there(name)], self.path)
            unless_opened.pop_all()
        self._uploader = Uploader(self._store, self.path, lambda: self._lease.taken_by)

    def read_info(self) -> dict[str, Any] | None:
        """Return the store's run.json, or None if there is none."""
        with _as_bad_input():
            data = self._store.read(_INFO)
        return None if data is None else parse_info(data, f"{self.location}: its run.json")

    def write_info(self, data: dict[str, Any]) -> None:
        """Replace the local run.json; the first call also writes it to the store, as `flush` does later."""
        super().write_info(data)
        if not self._is_announced:
            with _as_bad_input():
                self._store.upload(_INFO, self.path / _INFO)
            self._is_announced = True

    def finished(self) -> dict[TrialKey, Outcome]:
        """Return the outcomes of all finished trials, after the store and the folder were made the same.

        Raise RunStoppedError if uploads fail for long, BadInputError if downloads fail.
        """
        _LOG.info("results go to %s, by way of %s", self.location, self.path)
        self._parts_there = {name for name in self._there if PART.fullmatch(name)}
        beside = [name for name in self._there if _BESIDE.fullmatch(name) and not (self.path / name).exists()]
        with _as_bad_input():
            fetch(self._store, beside, self.path)  # trajectories first, because a part promises its trajectory
            self._take_tables()
            packed = self._packed(errors=False)
            wanted = [name for name in self._parts_there if name not in packed and not self._has_outcome(name)]
            if wanted or beside:
                _LOG.info("bringing back %d files from %s", len(wanted) + len(beside), self.location)
            fetch(self._store, wanted, self.path)
        found = super().finished()
        self._upload_parts()
        return found

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        """Write episodes locally and queue their upload. Raise PausedError, too, while the uploads are far behind."""
        uploader = self._running
        uploader.check()
        super().write_episodes(*episodes)
        for episode in episodes:
            trajectory = [] if episode.trajectory is None else [self.trajectory_path(episode.key)]
            part = self._name(self.part_path(episode.key))
            self._parts_there.add(part)
            uploader.enqueue(*map(self._name, trajectory), part)

    def flush(self) -> None:
        """Upload tables, report, videos and log, and run.json last. Raise RunStoppedError if that fails."""
        self._is_flushed = True
        uploader = self._running
        uploader.enqueue(*(name for name in _MADE_AT_THE_END if (self.path / name).exists()))
        for path in sorted((self.path / "videos").glob("*.mp4")):
            if self._there.get(self._name(path)) != path.stat().st_size:
                uploader.enqueue(self._name(path))
        uploader.flush()
        self._remove_packed()
        uploader.enqueue(_INFO)
        uploader.flush()

    def close(self) -> None:
        """Release lease and lock. After an error, upload as much as possible first."""
        uploader, self._uploader = self._uploader, None
        try:
            if uploader is not None:
                if not self._is_flushed:
                    self._flush_what_is_possible(uploader)
                uploader.close()
        finally:  # also after Ctrl-C, which ends the waiting
            self._lease.give_back()
            super().close()

    def _take_tables(self) -> None:
        """Replace the local merged tables by the store's; rows that only the local ones have become parts again.

        Parts are written before the tables are replaced, so a kill in between loses no row. The next merge packs them.
        """
        if EPISODES not in self._there:
            return
        with tempfile.TemporaryDirectory(prefix=".there-", dir=self.path) as folder:
            names = [name for name in (EPISODES, DECISIONS) if name in self._there]
            fetch(self._store, names, Path(folder))
            if not self._is_better(Path(folder)):
                return
            for name in reversed(names):
                put_in_place(Path(folder, name), self.path / name)

    def _is_better(self, theirs: Path) -> bool:
        """Return True if the tables in `theirs` should replace the local ones, whose other rows are then in parts."""
        there, here = _whole(theirs, self.location), _whole(self.path, str(self.path))
        if there is None:  # a damaged table that `finished` sets aside if nothing replaces it
            return not (self.path / EPISODES).exists()
        if here is not None and here.digest is not None and here.digest == there.digest:
            return False
        if here is not None:
            unpack(here, there, self.path)
        return True

    def _packed(self, errors: bool) -> set[str]:
        """Return the names of parts whose trials have an outcome (with `errors`: any row) in the local merged table."""
        merged = _whole(self.path, str(self.path))
        if merged is None:
            return set()
        columns = (merged.episodes[name].to_pylist() for name in ("suite", "task_id", "trial", "status"))
        rows = zip(*columns, strict=True)
        return {self._name(self.part_path(row[:3])) for row in rows if errors or row[3] != "error"}

    def _remove_packed(self) -> None:
        """Remove from the store the parts whose rows are in its merged table."""
        packed = self._parts_there & self._packed(errors=True)
        for name in sorted(packed):
            if not (self.path / name).exists():
                self._running.delete(name)
                self._parts_there.discard(name)

    @property
    def _running(self) -> Uploader:
        assert self._uploader is not None, "open() comes first"
        return self._uploader

    def _flush_what_is_possible(self, uploader: Uploader) -> None:
        names = [name for name in (*_MADE_AT_THE_END, _INFO) if (self.path / name).exists()]
        uploader.enqueue(*(names if self._is_announced else ()))
        try:
            uploader.flush(_PATIENCE_AFTER_AN_ERROR_S)
        except RunStoppedError as error:
            _LOG.warning("%s", error)

    def _forget_another_run(self) -> None:
        """Move local results of a run that is no longer in the store aside, without deleting them."""
        here, there = super().read_info(), self.read_info()
        if here is None or (there is not None and there.get("run_id") == here.get("run_id")):
            return
        number = next(n for n in range(1, 10_000) if not self._aside(n).exists())
        self._aside(number).mkdir()
        for entry in self.path.iterdir():
            if entry.name != ".lock":
                entry.rename(self._aside(number) / entry.name)
        self._make_folders()

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}-before-{number}")

    def _upload_parts(self) -> None:
        """Upload every local part that the store lacks or holds in another form, damaged ones included."""
        uploader = self._running
        for name in sorted(self._packed(errors=False)):
            trajectory = self._name(self._trajectory_of(self.path / name))
            if (self.path / trajectory).exists() and self._there.get(trajectory) != self._size(trajectory):
                uploader.enqueue(trajectory)
        for path in self.parts():
            names = [self._name(beside) for beside in (self._trajectory_of(path), path) if beside.exists()]
            self._parts_there.add(self._name(path))
            if any(self._there.get(name) != self._size(name) for name in names):
                uploader.enqueue(*names)
        for name in sorted(self._parts_there):
            damaged = f"{name}.damaged"
            if not (self.path / name).exists() and (self.path / damaged).exists():
                uploader.enqueue(damaged)
                uploader.delete(name)
                self._parts_there.discard(name)
        uploader.flush()

    def _trajectory_of(self, part: Path) -> Path:
        return self.path / "trajectories" / f"{part.parent.name}_{part.name}"

    def _has_outcome(self, name: str) -> bool:
        return part_status(self.path / name) in ("success", "failure")

    def _is_newer_there(self, name: str) -> bool:
        """Return True for run.json, and for run.log if more was written to it elsewhere."""
        size = self._there.get(name)
        return size is not None and (name == _INFO or size > (self._size(name) or 0))

    def _size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.exists() else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def _whole(folder: Path, name: str) -> MergedTables | None:
    """Return the folder's merged tables; None with a warning if they are damaged. Raise BadInputError if newer."""
    try:
        return MergedTables.read(folder)
    except BadInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        _LOG.warning("%s: a merged table is damaged (%s)", name, " ".join(str(error).split())[:200])
        return None


@contextlib.contextmanager
def _as_bad_input() -> Iterator[None]:
    """Turn errors of the store into BadInputError, for calls before the first actor starts."""
    try:
        yield
    except StoreError as error:
        raise BadInputError(f"output_dir: {error}; try again when the store answers, or choose another") from error
