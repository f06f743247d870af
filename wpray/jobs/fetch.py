"""Download of a job's result folder through the dashboard; each file is checked, and appears only when complete."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from wpray.errors import RunStoppedError
from wpray.jobs.manifest import RUN_INFO, ManifestError, ManifestFile, RunManifest, read_manifest
from wpray.provenance.record import file_sha256
from wpray.system.paths import depends_on_environment

Read = Callable[[str], Generator[bytes, None, None]]  # yields the bytes of a result file; may raise OSError

_RUNS = Path("runs")
_MARK = ".fetching"  # holds the run_id until every file has arrived
_AT_ONCE = 4
_TRIES = 3
_MOST_MANIFEST = 256 * 2**20  # bytes; a million files need less


@dataclass(frozen=True, slots=True)
class Fetched:
    """Result of a download."""

    folder: Path
    manifest: RunManifest
    already: int  # files that were already present


def fetch(list_files: Callable[[], Iterable[bytes]], read: Read, output_dir: str | None) -> Fetched:
    """Download the files of the manifest that `list_files` yields into `local_folder`, except those already present.

    Raise RunStoppedError if a file is missing; no partial file and no new run.json is left then.
    """
    try:
        manifest = read_manifest(b"".join(_at_most(_MOST_MANIFEST, list_files())))
        folder = local_folder(output_dir, manifest)
        return Fetched(folder, manifest, _fill(folder, manifest, read))
    except (OSError, ManifestError) as error:
        raise RunStoppedError(f"the results are not all here: {error}") from error


def local_folder(output_dir: str | None, manifest: RunManifest) -> Path:
    """Return a relative `output_dir`, or runs/ and the folder's own name; with a number if another run is in it.

    One with `~` or environment variables is expanded on the cluster only, so it names no folder here.
    """
    named = output_dir and not Path(output_dir).is_absolute() and not depends_on_environment(output_dir)
    first = Path(output_dir) if output_dir and named else _RUNS / (Path(manifest.folder).name.lstrip(".") or "run")
    names = itertools.chain([first], (first.with_name(f"{first.name}-{number}") for number in itertools.count(2)))
    return next(path for path in names if _may_hold(path, manifest.run_id))


def _may_hold(path: Path, run_id: str) -> bool:
    """Return whether `path` is absent, empty, or holds the same run, complete or not."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return True
    try:
        if (path / _MARK).exists():
            return (path / _MARK).read_text() == run_id
        return bool(json.loads((path / RUN_INFO).read_text())["run_id"] == run_id)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fill(folder: Path, manifest: RunManifest, read: Read) -> int:
    """Download files that are missing or different, run.json last; return how many were already present."""
    missing = [file for file in manifest.files if not _is_here(folder / file.name, file)]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).write_text(manifest.run_id)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda file: _fetch_file(folder, file, read), missing[:-1]):
                pass
        _fetch_file(folder, missing[-1], read)
        (folder / _MARK).unlink()
    return len(manifest.files) - len(missing)


def _is_here(path: Path, file: ManifestFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_sha256(path) == file.sha256


def _fetch_file(folder: Path, file: ManifestFile, read: Read) -> None:
    """Write a file, which appears under its name only when complete. Raise OSError if reading or writing fails."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in reversed(range(_TRIES)):
            try:
                _write(temporary, file, read)
                break
            except OSError:
                if left == 0:
                    raise
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(temporary: Path, file: ManifestFile, read: Read) -> None:
    digest = hashlib.sha256()
    with temporary.open("wb") as target, closing(read(file.name)) as chunks:
        for chunk in _at_most(file.size, chunks):
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != file.sha256:
        raise OSError(f"{file.name} did not come as it is on the cluster; is the run at work again?")


def _at_most(size: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            raise OSError("more came than was announced")
        yield chunk
