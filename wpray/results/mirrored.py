"""A run's folder whose results end up in a store: written here first, so that a crash leaves whole files or none."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wpray.errors import BadInputError, RunStoppedError
from wpray.results.encode import EncodedEpisode
from wpray.results.writer import Outcome, RunFolder, parse_info, part_status, safe_name
from wpray.storage.fetch import fetch
from wpray.storage.lease import Lease
from wpray.storage.mirror import Mirror
from wpray.storage.store import Store, StoreError
from wpray.storage.url import StoreUrl
from wpray.types import TrialKey

_LOG = logging.getLogger(__name__)
_ROOT = Path("runs")
_INFO, _RUN_LOG = "run.json", "run.log"
# What a run brings back from a store: nothing that another name could lead out of the folder.
PART = re.compile(r"parts/[A-Za-z0-9_-][\w.-]*/\d{3,}_\d{5,}\.parquet", re.ASCII)
_BESIDE = re.compile(r"(trajectories/[A-Za-z0-9_-][\w.-]*\.parquet|videos/[A-Za-z0-9_-][\w.-]*\.mp4)", re.ASCII)
_MADE_AT_THE_END = ("episodes.parquet", "decisions.parquet", "report.html", _RUN_LOG)
_PATIENCE_AFTER_AN_ERROR_S = 20.0


def staging_path(url: StoreUrl) -> Path:
    """The folder on this disk through which a store's results go: the same for the same URL."""
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:8]
    return _ROOT / f"{safe_name(url.base)}-{digest}"


class MirroredFolder(RunFolder):
    """A staging folder and a store. The store is what counts: the next driver may be on another machine.

    What is finished here and not yet there is brought there, what is there and not here is brought back.
    """

    def __init__(self, url: StoreUrl) -> None:
        """Raises BadInputError if the store cannot be reached."""
        super().__init__(staging_path(url))
        self._store = Store.connect(url)
        self._lease = Lease(self._store)
        self._mirror: Mirror | None = None
        self._there: dict[str, int] = {}  # the store's files and their sizes when this run began
        self._is_announced = self._is_delivered = False

    @property
    def place(self) -> str:
        """The URL."""
        return str(self._store.url)

    def top(self) -> set[str]:
        """Names of what lies directly under the URL."""
        with _as_bad_input():
            return {name for name in self._store.top() if not name.startswith(".")}

    def has_parts(self) -> bool:
        """Whether the store has any."""
        return "parts" in self.top()

    def open(self) -> None:
        """Takes the folder's lock and the store's lease, and makes run.json here that of the store.

        Raises BadInputError if one of them is another driver's, or the store fails.
        """
        super().open()
        with contextlib.ExitStack() as unless_opened, _as_bad_input():
            unless_opened.callback(self.close)
            self._lease.take()
            self._forget_another_run()
            self._there = self._store.sizes()
            fetch(self._store, [name for name in (_INFO, _RUN_LOG) if self._is_newer_there(name)], self.path)
            unless_opened.pop_all()
        self._mirror = Mirror(self._store, self.path, lambda: self._lease.taken_by)

    def read_info(self) -> dict[str, Any] | None:
        """The store's run.json, or None if there is none."""
        with _as_bad_input():
            data = self._store.read(_INFO)
        return None if data is None else parse_info(data, f"{self.place}: its run.json")

    def write_info(self, data: dict[str, Any]) -> None:
        """Replaces run.json here; the first time in the store, too, before the first result: later, `deliver` does."""
        super().write_info(data)
        if not self._is_announced:
            with _as_bad_input():
                self._store.upload(_INFO, self.path / _INFO)
            self._is_announced = True

    def finished(self) -> dict[TrialKey, Outcome]:
        """Outcomes of the trials that have one here or in the store, which then are the same.

        Raises RunStoppedError if the store takes nothing for long, BadInputError if it gives nothing.
        """
        _LOG.info("results go to %s, by way of %s", self.place, self.path)
        there = [name for name in self._there if PART.fullmatch(name)]
        beside = [name for name in self._there if _BESIDE.fullmatch(name) and not (self.path / name).exists()]
        wanted = [name for name in there if self._there[name] != self._size(name) and not self._has_outcome(name)]
        if wanted or beside:
            _LOG.info("bringing back %d files from %s", len(wanted) + len(beside), self.place)
        with _as_bad_input():
            fetch(self._store, beside, self.path)  # first: a part is the sign that its trajectory is there
            fetch(self._store, wanted, self.path)
        found = super().finished()
        self._make_alike(there)
        return found

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        """Writes them here and has them brought to the store. Raises PausedError, too, while it is far behind."""
        mirror = self._running
        mirror.check()
        super().write_episodes(*episodes)
        for episode in episodes:
            trajectory = [] if episode.trajectory is None else [self.trajectory_path(episode.key)]
            mirror.put(*map(self._name, [*trajectory, self.part_path(episode.key)]))

    def deliver(self) -> None:
        """Brings tables, report, videos and log to the store, run.json last. Raises RunStoppedError if it fails."""
        self._is_delivered = True
        mirror = self._running
        mirror.put(*(name for name in _MADE_AT_THE_END if (self.path / name).exists()))
        for path in sorted((self.path / "videos").glob("*.mp4")):
            if self._there.get(self._name(path)) != path.stat().st_size:
                mirror.put(self._name(path))
        mirror.drain()
        mirror.put(_INFO)
        mirror.drain()

    def close(self) -> None:
        """Gives lease and lock back; a run that an error has ended brings what it can."""
        mirror, self._mirror = self._mirror, None
        try:
            if mirror is not None:
                if not self._is_delivered:
                    self._deliver_what_is_possible(mirror)
                mirror.close()
        finally:  # Ctrl-C ends the waiting, too
            self._lease.give_back()
            super().close()

    @property
    def _running(self) -> Mirror:
        assert self._mirror is not None, "open() comes first"
        return self._mirror

    def _deliver_what_is_possible(self, mirror: Mirror) -> None:
        names = [name for name in (*_MADE_AT_THE_END, _INFO) if (self.path / name).exists()]
        mirror.put(*(names if self._is_announced else ()))
        try:
            mirror.drain(_PATIENCE_AFTER_AN_ERROR_S)
        except RunStoppedError as error:
            _LOG.warning("%s", error)

    def _forget_another_run(self) -> None:
        """What lies here of a run that is no longer in the store is moved out of the way, not deleted."""
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

    def _make_alike(self, there: list[str]) -> None:
        """Afterwards the store has exactly the finished trials that are here, and damaged ones as they are here."""
        mirror = self._running
        for path in self.parts():
            names = [self._name(beside) for beside in (self._trajectory_of(path), path) if beside.exists()]
            if any(self._there.get(name) != self._size(name) for name in names):
                mirror.put(*names)
        for name in there:
            if not (self.path / name).exists():
                damaged = f"{name}.damaged"
                mirror.put(*([damaged] if (self.path / damaged).exists() else []))
                mirror.delete(name)
        mirror.drain()

    def _trajectory_of(self, part: Path) -> Path:
        return self.path / "trajectories" / f"{part.parent.name}_{part.name}"

    def _has_outcome(self, name: str) -> bool:
        return part_status(self.path / name) in ("success", "failure")

    def _is_newer_there(self, name: str) -> bool:
        """run.json always; run.log if more was written to it elsewhere."""
        size = self._there.get(name)
        return size is not None and (name == _INFO or size > (self._size(name) or 0))

    def _size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.exists() else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


@contextlib.contextmanager
def _as_bad_input() -> Iterator[None]:
    """Before the first actor starts, a store that fails is bad input: one line, exit code 2."""
    try:
        yield
    except StoreError as error:
        raise BadInputError(f"output_dir: {error}; try again when the store answers, or choose another") from error
