"""`python -m tests.bench NAME ...`, in a clone of the repository."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.errors import BadInputError

BENCHMARKS = {
    "scale": "growth of a run over env actors and GPUs, and what limits it",
    "draw": "frames a second of a drawer on this machine, from recorded models and poses",
    "steps": "control steps in many processes at once, against MuJoCo's own part of them",
    "solver": "control steps with and without what the constraint solver does not compute again",
    "screenshot": "a picture of a report or a live page, for the README",
    "variants": "LIBERO-plus's variants in scenes that they share, against compiling each",
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that `argv` names. Raise BadInputError if there is none."""
    if argv and argv[0] in ("-h", "--help"):
        for name, about in BENCHMARKS.items():
            print(f"python -m tests.bench {name:<10} {about}")
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        raise BadInputError(f"use: python -m tests.bench {' | '.join(BENCHMARKS)} (each has --help)")
    result: int = importlib.import_module(f"tests.bench.{argv[0]}").main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
