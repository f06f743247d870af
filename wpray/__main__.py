"""`wpray COMMAND ...` is `python -m wpray.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.command import run_command
from wpray.errors import BadInputError

_MODULES = {"bench": "wpray.bench.__main__"}
_COMMANDS = {
    "launch": "evaluate a policy (no arguments: the quickstart)",
    "bench": "benchmarks: env, e2e, policy",
}


def dispatch(argv: Sequence[str]) -> int:
    """Runs the command that `argv` names. Raises BadInputError if there is none."""
    if argv and argv[0] in _COMMANDS:
        result: int = importlib.import_module(_MODULES.get(argv[0], f"wpray.{argv[0]}")).main(argv[1:])
        return result
    if argv and argv[0] in ("-h", "--help"):
        for name, about in _COMMANDS.items():
            print(f"wpray {name:<10} {about}")
        return 0
    raise BadInputError(f"use: wpray {' | '.join(_COMMANDS)} (each has --help)")


def main() -> None:
    """Entry point of the `wpray` command."""
    sys.exit(run_command(dispatch, sys.argv[1:]))


if __name__ == "__main__":
    main()
