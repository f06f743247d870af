"""Course of a sweep beside a training run that still writes checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from wpray.errors import BadInputError
from wpray.sweep.course import Course, Job
from wpray.sweep.folder import SweepFolder
from wpray.sweep.grid import Grid, SweepCheckpoint

LOOK_S = 5.0  # between two looks; files that have not changed from one to the next are complete
_Signature = tuple[tuple[str, int, int], ...]  # name, size and time of each file


class Watch(Course):
    """Every checkpoint once, as soon as it is complete."""

    def __init__(
        self,
        grid: Grid,
        folder: SweepFolder,
        patience_s: float,
        check: Callable[[SweepCheckpoint], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Look for checkpoints until none has come, or changed, for `patience_s`.

        `check` raises BadInputError for a checkpoint that the policy cannot read, or not yet.
        """
        super().__init__(grid, folder, [])
        self._patience_s, self._check, self._clock, self._sleep = patience_s, check, clock, sleep
        self._seen: dict[str, tuple[_Signature, float]] = {}  # files of incomplete checkpoints, and since when
        self._came_at = clock()
        self._incomplete: dict[str, str] = {}

    @property
    def incomplete(self) -> Mapping[str, str]:
        """Reasons by path why checkpoints that are there do not count yet."""
        return self._incomplete

    def left(self, failed: Collection[str]) -> list[Job]:
        """Return the complete checkpoints that are to be evaluated, in order."""
        self._look()
        return super().left(failed)

    def wait(self, failed: Collection[str]) -> bool:
        """Wait for a new checkpoint; return False if none has come for too long."""
        print("Waiting for new checkpoints", flush=True)
        while not self.left(failed):
            if self._clock() - self._came_at > self._patience_s:
                return False
            self._sleep(LOOK_S)
        return True

    def _look(self) -> None:
        known, new = {job.checkpoint.name for job in self.jobs}, []
        self._incomplete = {}
        for checkpoint in self.grid.checkpoints():
            if checkpoint.name in known:
                continue
            reason = self._lacks(checkpoint)
            if reason is None:
                new.append(checkpoint)
            else:
                self._incomplete[" + ".join(checkpoint.paths.values())] = reason
        if new:
            self._came_at = self._clock()
            self.add(new)

    def _lacks(self, checkpoint: SweepCheckpoint) -> str | None:
        """Return why a checkpoint does not count yet; None if it does."""
        paths = [Path(path) for path in checkpoint.paths.values()]
        signature, now = _signature(paths), self._clock()
        before, since = self._seen.get(checkpoint.name, (None, now))
        if before != signature:
            self._seen[checkpoint.name] = (signature, now)
            self._came_at = now  # it may have come during a run that took longer than the patience
        if before != signature or now - since < LOOK_S:
            return "its files may still change"
        try:
            for path in paths:
                check_headers(path)
            self._check(checkpoint)
        except BadInputError as error:
            return str(error)
        return None


def check_headers(path: Path) -> None:
    """Raise BadInputError unless the weights at `path` are whole.

    A safetensors file is if its size is what its header says; shards are if all that their index names are there.
    """
    files = list(_files(path))
    if not files:
        raise BadInputError(f"{path}: holds no file")
    if find_spec("safetensors") is None:
        return
    from wpray.models.header import is_index, read_headers

    for file in files:
        if file.suffix == ".safetensors" or is_index(file):
            read_headers(file, "checkpoint")


def _signature(paths: Collection[Path]) -> _Signature:
    found = []
    for path in paths:
        for file in _files(path):
            try:
                state = file.stat()
            except OSError:  # renamed meanwhile
                continue
            found.append((str(file), state.st_size, state.st_mtime_ns))
    return tuple(sorted(found))


def _files(path: Path) -> Iterator[Path]:
    """Yield the file, or all files in the folder and below it."""
    if path.is_file():
        yield path
    for place, _, names in os.walk(path):
        yield from (Path(place, name) for name in names)
