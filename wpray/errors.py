"""Errors that a user can act on; each message is one line and names the remedy."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class WprayError(Exception):
    """Base of every error that wpray raises on purpose."""


class BadInputError(WprayError, ValueError):
    """Error for input (config, file, folder, machine) that cannot be used: exit code 2, one line, no traceback."""


class DamagedRunError(BadInputError):
    """Error for a run's folder, or a file in it, that is missing, damaged or not a run's."""


class NewerSchemaError(BadInputError):
    """Error for a file that a newer version of wpray has written and this one cannot read."""


class RunStoppedError(WprayError, RuntimeError):
    """Error for a run that stopped before every trial had a row; what is finished is kept, exit code 1."""


class RunFailedError(RunStoppedError):
    """Error for a run that its own policy or the errors of its episodes stopped; another policy's run may work."""


class PausedError(RunStoppedError):
    """Error for a result that cannot be kept now but perhaps later: the driver waits before it stops."""


class InvalidRequestError(WprayError, ValueError):
    """Error for a request that no process of the policy can answer: too long a prompt, a missing image.

    Policies raise it while they prepare or answer a request. Its trial becomes an error row at once: no replica is
    restarted and no attempt is repeated, so raise it only for what depends on the request alone.
    """


class ThreadDiedError(WprayError, RuntimeError):
    """Error of a process that has lost a thread that others rely on; the driver replaces the process."""


@contextlib.contextmanager
def wrapping_errors(
    make: Callable[[Any], Exception],
    *but: type[BaseException],
    caught: type[BaseException] = Exception,
) -> Iterator[None]:
    """Raise `make(error)` for any error but those of `but`.

    It wraps code of others: policies, simulators, Ray, the libraries behind fsspec. Nothing else catches any exception.
    `caught` is BaseException where that code must not end a thread by SystemExit or the like either.
    """
    try:
        yield
    except but:
        raise
    except caught as error:
        raise make(error) from error


def shown(name: str) -> str:
    """Return a name from a file in a form that fits into a line: printable and short."""
    return name if name.isascii() and name.isprintable() and len(name) <= 120 else ascii(name)[:120]
