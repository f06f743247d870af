"""Lock of a folder, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType


class FolderLock:
    """Lock of a folder's file `.lock`; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises BlockingIOError if another process holds it, OSError if it cannot be written."""
        self._file = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock."""
        self._file.close()


def is_locked(folder: Path) -> bool:
    """Return True if a process holds the folder's lock."""
    try:
        with (folder / ".lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
