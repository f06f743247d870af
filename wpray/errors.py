"""Errors that a user can act on: each message is one line and names the remedy."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class WprayError(Exception):
    """Base of every error that wpray raises on purpose."""


class BadInputError(WprayError, ValueError):
    """The input (config, file, folder, machine) cannot be used as it is: exit code 2, one line, no traceback."""


class DamagedRunError(BadInputError):
    """A run's folder, or a file in it, is missing, damaged or not a run's; a reader refuses it."""


class NewerSchemaError(BadInputError):
    """A file was written by a version of wpray whose files this one cannot read."""


class RunStoppedError(WprayError, RuntimeError):
    """The run stopped before every trial had a row, keeping what is finished: exit code 1."""


class PausedError(RunStoppedError):
    """A result cannot be kept now, but may be later: the driver waits for a while before it stops."""


class InvalidRequestError(WprayError, ValueError):
    """A request that no process of the policy can answer, such as one with too long a prompt or without an image.

    Policies raise it while they prepare or answer a request. Its trial becomes an error row at once: no replica is
    restarted and no attempt is repeated, so raise it only for what depends on the request alone.
    """


class ThreadDiedError(WprayError, RuntimeError):
    """A thread that others rely on has ended, so its process is of no more use: the driver replaces it."""


@contextlib.contextmanager
def wrapping_errors(
    make: Callable[[Any], Exception],
    *but: type[BaseException],
    caught: type[BaseException] = Exception,
) -> Iterator[None]:
    """Raise what `make` makes of an error; not of one of `but`.

    For what others' code raises: policies, simulators, Ray, what stands behind fsspec. Nothing else catches whatever
    comes. `caught`: BaseException where others' code must not end a thread by SystemExit or the like either.
    """
    try:
        yield
    except but:
        raise
    except caught as error:
        raise make(error) from error


def shown(name: str) -> str:
    """Return a name that a file holds as it may stand in a line: printable, and not long."""
    return name if name.isascii() and name.isprintable() and len(name) <= 120 else ascii(name)[:120]
