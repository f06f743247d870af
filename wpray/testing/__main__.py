"""`python -m wpray.testing NAME ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.errors import BadInputError

_CHECKS = {"golden": "a checkpoint against recorded numbers, or record them"}


def main(argv: Sequence[str]) -> int:
    """Run the check that `argv` names. Raise BadInputError if there is none."""
    if argv and argv[0] in ("-h", "--help"):
        for name, about in _CHECKS.items():
            print(f"python -m wpray.testing {name:<10} {about}")
        return 0
    if not argv or argv[0] not in _CHECKS:
        raise BadInputError(f"use: python -m wpray.testing {' | '.join(_CHECKS)} (each has --help)")
    result: int = importlib.import_module(f"wpray.testing.{argv[0]}").main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
