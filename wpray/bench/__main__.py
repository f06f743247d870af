"""`python -m wpray.bench NAME ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.errors import BadInputError

_BENCHMARKS = {
    "env": "the environment against stock LIBERO's, on the same actions",
    "e2e": "an episode's time by activity, with a policy that costs nothing",
    "policy": "plans and segments on this GPU, against what its memory and arithmetic allow",
    "share": "a policy's batches beside busy cores and processes that draw on its GPU",
    "pi0": "requests a second of pi0, beside calling Transformers directly",
}
_IN_A_CLONE = {"scale": "python -m tests.bench scale"}  # commands that earlier versions installed


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that `argv` names. Raise BadInputError if there is none."""
    if argv and argv[0] in ("-h", "--help"):
        for name, about in _BENCHMARKS.items():
            print(f"python -m wpray.bench {name:<7} {about}")
        return 0
    if argv and argv[0] in _IN_A_CLONE:
        raise BadInputError(f"bench {argv[0]} is not installed; run it in a clone of wpray: {_IN_A_CLONE[argv[0]]}")
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
