"""Exit codes of all commands: bad input is one line and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from wpray.errors import BadInputError, RunStoppedError


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run `main` and turn its errors into an exit code: 1 a run that stopped early, 2 bad input, 130 Ctrl-C.

    SIGTERM, with which schedulers and containers end a process, counts as Ctrl-C.
    """
    try:
        with _terminated_as_interrupted():
            return main(argv)
    except BadInputError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except RunStoppedError as error:
        print(f"stopped: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _one_line(error: Exception) -> str:
    """Return the text with its line ends and terminal codes escaped; a file name or a key may hold some."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(error))
