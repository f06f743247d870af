"""A lock for compiling, so that one process of a machine compiles the controller and the others read its cache."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from wpray.system import private_folder


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold this user's lock for compiling on this machine; it dies with its process.

    Forty environments that start together would otherwise all compile the same, for a minute of every core.
    """
    try:
        file = (private_folder.path_under() / "compiling").open("w")
    except OSError:  # the folder is not held, or the disk is full: compiling beside others is only slower
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
