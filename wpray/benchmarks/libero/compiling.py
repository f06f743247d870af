"""A lock for compiling, so that one process of a machine compiles something and the others read its cache."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from typing import IO

from wpray.system import private_folder

_LONGEST_S = 60.0  # then the process that compiles hangs, and compiling beside it is only slower
_POLL_S = 0.02


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Hold this user's lock for compiling `what` on this machine; it dies with its process.

    Forty environments that start together would otherwise all compile the same, for a minute of every core.
    """
    try:
        file = (private_folder.path_under() / f"compiling-{what}").open("w")
    except OSError:  # the folder is not held, or the disk is full: compiling beside others is only slower
        yield
        return
    with file:
        _lock(file)
        yield


def _lock(file: IO[str]) -> None:
    """Wait for the lock, but not for a process that hangs, nor on a file system without locks."""
    deadline = time.monotonic() + _LONGEST_S
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(_POLL_S)
