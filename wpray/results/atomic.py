"""Files that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from wpray.errors import BadInputError, PausedError, RunStoppedError


class DiskFullError(PausedError):
    """Lack of disk space for a result; earlier results are intact."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all, and survives a power cut once this returns.

    Raise DiskFullError if the disk is full, RunStoppedError if it fails for another reason.
    """
    write_together([(str(path), data)], [str(path.parent)])


def write_for_user(path: Path, data: bytes, option: str) -> None:
    """Write the file that a command's `option` names: whole or not at all, unless it is a device or a pipe.

    Raise BadInputError if it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_atomic(path, data)
    except (OSError, ValueError, RunStoppedError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise BadInputError(f"{option}: cannot write {path} ({reason}); choose another file") from error


def write_together(files: Sequence[tuple[str, bytes]], folders: Iterable[str]) -> None:
    """Write each (path, data) as `write_atomic` does, but sync only `folders`, once.

    Files get their names in the given order, after the content of all of them is on the disk. Raise what `write_atomic`
    raises; some files may then have their names already.
    """
    temporaries: list[str] = []
    try:
        _write_synced(files, temporaries)
        for (path, _), temporary in zip(files, temporaries, strict=True):
            os.replace(temporary, path)
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise stopped_by(Path(files[-1][0]), error) from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a complete file its name, which survives a power cut once this returns. Raise OSError."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(str(path.parent))


def stopped_by(path: Path, error: OSError) -> RunStoppedError:
    """Return the error that stops a run whose file `path` cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no room left for {path}")
    return RunStoppedError(f"cannot write {path} ({error.strerror or error}); the same command goes on when it can be")


def sync_folder(folder: str) -> None:
    """Sync the names in a folder, so that they survive a power cut. Raise OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(files: Iterable[tuple[str, bytes]], temporaries: list[str]) -> None:
    """Write all files under temporary names, which are added to `temporaries`, then sync each of them."""
    descriptors: list[int] = []
    try:
        for path, data in files:
            folder, name = os.path.split(path)  # strings and descriptors, because objects cost the driver more
            temporaries.append(os.path.join(folder, f".{name}.{os.getpid()}.tmp"))
            descriptors.append(os.open(temporaries[-1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666))
            _write_all(descriptors[-1], data)
            if hasattr(os, "posix_fadvise"):  # Linux starts to write the file, so that later ones do not wait for it
                os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_DONTNEED)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write `data` in as many calls as needed, because a nearly full disk accepts a part before it fails."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
