"""`python -m wpray.bench NAME ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.errors import BadInputError

_BENCHMARKS = {
    "env": "the environment against stock LIBERO's, on the same actions",
    "e2e": "where an episode's time goes when the policy costs nothing",
    "policy": "plans and segments on this GPU, against what its memory and arithmetic allow",
    "scale": "how far a run grows, and what stops it",
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that `argv` names. Raise BadInputError if there is none."""
    if argv and argv[0] in ("-h", "--help"):
        for name, about in _BENCHMARKS.items():
            print(f"python -m wpray.bench {name:<7} {about}")
        return 0
    if not argv or argv[0] not in _BENCHMARKS:
        raise BadInputError(f"use: python -m wpray.bench {' | '.join(_BENCHMARKS)} (each has --help)")
    try:
        benchmark = importlib.import_module(f"wpray.bench.{argv[0]}")
    except ModuleNotFoundError as error:
        raise BadInputError(f"bench {argv[0]} needs {error.name}, which is not installed; see the README") from error
    result: int = benchmark.main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
