"""Files that appear whole or not at all, whatever ends the process or the machine, and at whichever instant."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from wpray.errors import BadInputError, PausedError, RunStoppedError


class DiskFullError(PausedError):
    """There is no room for a result; what was written before is intact."""


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all, and survives a power cut once this returns.

    Raises DiskFullError when there is no room, RunStoppedError if the disk does not take it for another reason.
    """
    write_together([(str(path), data)], [str(path.parent)])


def write_for_user(path: Path, data: bytes, option: str) -> None:
    """Write the file that a command's `option` names: whole or not at all, if it is a file and no device or pipe.

    Raises BadInputError if it cannot be written.
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
    """Writes each (path, data) as `write_atomic` does, but syncs only `folders`, once.

    A file gets its name after all those before it, the first once the content of all is on the disk. Raises what
    `write_atomic` raises; then some may have their names already.
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
    """Gives a file that is complete its name, so that it survives a power cut once this returns. Raises OSError."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(str(path.parent))


def stopped_by(path: Path, error: OSError) -> RunStoppedError:
    """What stops a run whose file `path` cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no room left for {path}")
    return RunStoppedError(f"cannot write {path} ({error.strerror or error}); the same command goes on when it can be")


def sync_folder(folder: str) -> None:
    """Makes the names in it survive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(files: Iterable[tuple[str, bytes]], temporaries: list[str]) -> None:
    """Adds the files' temporary names to `temporaries`; all are written before the first is waited for."""
    descriptors: list[int] = []
    try:
        for path, data in files:
            folder, name = os.path.split(path)  # strings, descriptors: this is the driver's, objects cost more
            temporaries.append(os.path.join(folder, f".{name}.{os.getpid()}.tmp"))
            descriptors.append(os.open(temporaries[-1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666))
            _write_all(descriptors[-1], data)
            if hasattr(os, "posix_fadvise"):  # Linux begins to write it, so that none waits for the one before it
                os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_DONTNEED)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """A disk that is nearly full takes a part of it before it refuses the rest."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
