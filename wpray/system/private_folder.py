"""Folder of this user's processes for files that libraries want on a disk; the last process removes it."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wpray.errors import BadInputError

_LOCK = ".lock"


@dataclass(slots=True)
class PrivateFolder:
    """This user's folder, or one of this process alone if another user has taken the name."""

    path: Path
    lock: int | None  # descriptor of the lock that all holders share; None without one

    def release(self) -> None:
        """Remove the folder, with the files of killed processes, unless another process still holds it."""
        if self.lock is None:
            return
        lock, self.lock = self.lock, None
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(self.path)
            (self.path / _LOCK).unlink()  # last, because a process that waits for this lock makes the folder again
            self.path.rmdir()
        os.close(lock)


def _empty(folder: Path) -> None:
    """Remove everything except the lock."""
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink()


def path_under(parent: Path | None = None) -> Path:
    """Return the path of this user's folder, existing or not; `parent` None: where temporary files go.

    Raises BadInputError if temporary files cannot be written.
    """
    try:
        return (parent or Path(tempfile.gettempdir())) / f"wpray-{os.geteuid()}"
    except OSError as error:
        raise BadInputError(f"no folder for temporary files can be written ({error.strerror}); set TMPDIR") from error


def hold(parent: Path | None = None) -> PrivateFolder:
    """Make this user's folder, readable by nobody else, and hold it until it is released or the process ends.

    Raises BadInputError if it cannot be made.
    """
    path = path_under(parent)
    try:
        held = _share(path) or PrivateFolder(Path(tempfile.mkdtemp(prefix="wpray-", dir=path.parent)), None)
    except OSError as error:
        raise BadInputError(f"cannot make the folder {path} ({error.strerror}); set TMPDIR to another") from error
    if held.path != path:
        atexit.register(shutil.rmtree, held.path, ignore_errors=True)
    atexit.register(held.release)
    return held


def _share(path: Path) -> PrivateFolder | None:
    """Return the folder, held; None if it is not ours, because somebody else could put files into it."""
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its last holder has just removed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError:  # the file system has no locks, so the folder stays
            os.close(lock)
            return PrivateFolder(path, None)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == (path / _LOCK).stat().st_ino:
                return PrivateFolder(path, lock)
        os.close(lock)
