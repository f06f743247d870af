"""Locks for compiling, so that one process of a machine compiles something and the others read its cache."""

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
    with _opened(what) as file:
        if file is not None:
            _lock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def first_one_alone(what: str) -> Iterator[None]:
    """Hold this user's lock for compiling `what` alone if it is free, else share it once its first holder is done.

    It suits code that is read from a cache in a moment, because forty environments that start together would otherwise
    read it one after another.
    """
    with _opened(what) as file:
        if file is not None and not _took(file, fcntl.LOCK_EX):
            _lock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _opened(what: str) -> Iterator[IO[str] | None]:
    """Open the lock's file; None where that fails, because compiling beside others is only slower."""
    try:
        file = (private_folder.path_under() / f"compiling-{what}").open("w")
    except OSError:  # the folder is not held, or the disk is full
        yield None
        return
    with file:
        yield file


def _lock(file: IO[str], kind: int) -> None:
    """Wait for the lock, but not for a process that hangs."""
    deadline = time.monotonic() + _LONGEST_S
    while not _took(file, kind) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _took(file: IO[str], kind: int) -> bool:
    """Take the lock and return True, also on a file system without locks; return False if others hold it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
