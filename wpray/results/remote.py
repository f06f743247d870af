"""Local copy of a run in a store: tables at once, large files when they are read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wpray.errors import BadInputError
from wpray.results.merged import DECISIONS, EPISODES
from wpray.results.mirrored import PART, staging_path
from wpray.results.writer import parse_info, safe_name
from wpray.storage.fetch import fetch
from wpray.storage.store import Store, StoreError
from wpray.storage.url import StoreUrl
from wpray.system.cache_folder import cache_folder

_INFO = "run.json"
_TABLES = (EPISODES, DECISIONS)
_TRIES = 3


@dataclass(frozen=True)
class RemoteRun:
    """Run in a store, and the folder of its local copy."""

    store: Store
    copy: Path

    @classmethod
    def of(cls, url: StoreUrl) -> RemoteRun:
        """Copy description and tables, or the parts of a run that has not merged them.

        Raise BadInputError if there is no run, or the store fails.
        """
        store = Store.connect(url)
        with _as_bad_input():
            data = store.read(_INFO)
            if data is None:
                raise BadInputError(f"{url}: holds no run (no {_INFO}); name a run's folder or URL")
            run_id = parse_info(data, f"{url}: its {_INFO}").get("run_id")
            run = cls(store, cache_folder() / staging_path(url).name / safe_name(str(run_id)))
            run._copy_all()
        return run

    def download(self, name: str) -> None:
        """Copy a further file of the run, if the store has it and the folder lacks it. Raise BadInputError."""
        path = self.copy / name
        with _as_bad_input():
            if not path.exists() and self.store.holds(name):
                self.store.download(name, path)

    def _copy_all(self) -> None:
        """Copy the tables, and copy them again if the run's driver merged and removed parts meanwhile."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(StoreError):
                return self._copy_tables()
        self._copy_tables()

    def _copy_tables(self) -> None:
        """Copy parts before tables, because a part that is removed before it is copied is in the later tables."""
        there = self.store.sizes()
        parts = {name: size for name, size in there.items() if PART.fullmatch(name)}
        for path in (self.copy / "parts").glob("*/*.parquet"):
            if parts.get(path.relative_to(self.copy).as_posix()) != path.stat().st_size:
                path.unlink()
        fetch(self.store, [name for name in parts if not (self.copy / name).exists()], self.copy)
        for name in _TABLES:
            if name not in there:
                (self.copy / name).unlink(missing_ok=True)
        fetch(self.store, [name for name in (_INFO, *_TABLES) if name in there], self.copy)
        if not parts:
            shutil.rmtree(self.copy / "parts", ignore_errors=True)


@contextlib.contextmanager
def _as_bad_input() -> Iterator[None]:
    try:
        yield
    except (StoreError, OSError) as error:
        raise BadInputError(f"{error}; try again when the store answers") from error
