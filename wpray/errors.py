"""Errors that a user can act on: each message is one line and names the remedy."""

import contextlib
from collections.abc import Callable, Iterator


class WprayError(Exception):
    """Base of every error that wpray raises on purpose."""


class BadInputError(WprayError, ValueError):
    """The input (config, file, folder, machine) cannot be used as it is: exit code 2, one line, no traceback."""


class RunStoppedError(WprayError, RuntimeError):
    """The run stopped before every trial had a row, keeping what is finished: exit code 1."""


class PausedError(RunStoppedError):
    """A result cannot be kept now, but may be later: the driver waits for a while before it stops."""


@contextlib.contextmanager
def told_as(make: Callable[[Exception], Exception], *but: type[Exception]) -> Iterator[None]:
    """Raises what `make` makes of an error; not of one of `but`.

    For what others' code raises: policies, simulators, Ray, what stands behind fsspec. Nothing else catches whatever
    comes.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise make(error) from error


def shown(name: str) -> str:
    """Return a name that a file holds as it may stand in a line: printable, and not long."""
    return name if name.isascii() and name.isprintable() and len(name) <= 120 else ascii(name)[:120]
