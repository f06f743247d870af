"""Compiled once for a machine: the first process compiles the controller's arithmetic, the others read its cache."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from wpray.system import private_folder


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds this user's lock for compiling on this machine; it dies with its process.

    Forty environments that start together would otherwise all compile the same, for a minute of every core.
    """
    try:
        file = (private_folder.path_under() / "compiling").open("w")
    except OSError:  # nobody holds the folder, or there is no room: compiling beside others is only slower
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
