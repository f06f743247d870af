"""The `wpray` command: `wpray COMMAND ...` is `python -m wpray.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.errors import BadInputError

_PACKAGES = ("bench", "dataset_stats", "doctor", "export", "report", "serve", "sweep", "table", "testing", "video")
_COMMANDS = {
    "launch": "evaluate a policy (no arguments: the quickstart)",
    "doctor": "check everything that a run needs",
    "sweep": "evaluate many checkpoints: one table, one curve",
    "dataset_stats": "dataset_statistics.json from RLDS data sets",
    "serve": "serve a policy to robots and other harnesses (openpi's protocol)",
    "report": "a run as one HTML page",
    "compare": "is run B better than run A, on the same trials?",
    "table": "runs as a table: policies by suites (Markdown, LaTeX, CSV)",
    "video": "render videos of a run's episodes",
    "export": "write a run's episodes in another tool's format (lerobot)",
    "soup": "average checkpoints of one layout",
    "testing": "hold a checkpoint against recorded numbers (golden)",
    "bench": "benchmarks: env, e2e, policy",
}


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names. Raises BadInputError if there is none."""
    if argv and argv[0] in _COMMANDS:
        name = f"wpray.{argv[0]}.__main__" if argv[0] in _PACKAGES else f"wpray.{argv[0]}"
        result: int = importlib.import_module(name).main(argv[1:])
        return result
    if argv and argv[0] in ("-h", "--help"):
        for name, about in _COMMANDS.items():
            print(f"wpray {name:<13} {about}")
        return 0
    raise BadInputError(f"use: wpray {' | '.join(_COMMANDS)} (each has --help)")


def main() -> None:
    """Run the `wpray` command and exit."""
    sys.exit(run_command(dispatch, sys.argv[1:]))


if __name__ == "__main__":
    main()
