"""`python -m wpray.sweep`: evaluate many checkpoints. It reads the configuration before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from wpray.cli.arguments import number, whole
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
    from wpray.sweep.command import How, show_plan, sweep

    options = _options(ArgumentParser(add_help=False)).parse_known_args(words)[0]
    how = How(options.watch, options.race, options.held_out)
    return show_plan(grid, how) if options.plan else sweep(grid, how)


def _parser() -> ArgumentParser:
    return _options(ArgumentParser(prog="python -m wpray.sweep", description=_ABOUT))


def _options(parser: ArgumentParser) -> ArgumentParser:
    """Add the options that are no settings of a run."""
    plan = "start nothing: list the checkpoints and what is finished"
    watch = "look for new checkpoints of a training run, until none has come for so many minutes"
    race = "find the best: all begin with N trials a task, and the better half goes on with twice as many"
    held_out = "with --race: the last N of num_trials_per_task are for the winner alone (half of them)"
    parser.add_argument("--plan", action="store_true", help=plan)
    parser.add_argument("--watch", type=number(0, above=True), metavar="MINUTES", help=watch)
    parser.add_argument("--race", type=whole(1), metavar="N", help=race)
    parser.add_argument("--held_out", type=whole(1), metavar="N", help=held_out)
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
