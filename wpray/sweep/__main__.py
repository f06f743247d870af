"""`python -m wpray.sweep`: evaluate many checkpoints. It reads the configuration before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from wpray.cli.command import run_command
from wpray.cli.configuration import read_settings
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env
from wpray.errors import BadInputError
from wpray.sweep.grid import SWEPT, read_grid

_ABOUT = (
    "Evaluate many checkpoints one after the other: every combination of the paths that the settings name. A path may "
    "be a pattern in quotes ('RUN/*/vlm'), or several paths. Every other field below is as in python -m wpray.launch."
)


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if every run has all its episodes, 1 if one has not. Raises BadInputError."""
    words, lists = _split_lists(argv)
    settings = read_settings(words, _parser())
    grid = read_grid({**settings, **lists})
    process_env.prepare(joins_a_cluster=grid.template.ray.address is not None)
    from wpray.sweep.command import show_plan, sweep

    return show_plan(grid) if "--plan" in words else sweep(grid)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.sweep", description=_ABOUT)
    parser.add_argument("--plan", action="store_true", help="start nothing: list the checkpoints and what is finished")
    return parser


def _split_lists(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return `argv` without the settings that have several values or a pattern, and these.

    A shell that expands a pattern gives several words. Raises BadInputError for a setting that is given twice.
    """
    words: list[str] = []
    lists: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in SWEPT:
            words.append(word)
            continue
        paths = [value] if equals else []
        while rest and not equals and not rest[0].startswith("--"):
            paths.append(rest.pop(0))
        if not paths or name in lists:
            wrong = "is given twice; give its paths together" if paths else "expected at least one path (see --help)"
            raise BadInputError(f"argument --{name}: {wrong}")
        lists[name] = paths if len(paths) > 1 else paths[0]
    return words, lists


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
