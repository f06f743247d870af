"""`python -m wpray.table RUN...`: policies by suites, as a paper prints them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from wpray.cli.arguments import file_to_write, location
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.results import load
from wpray.results.atomic import write_for_user
from wpray.table.formats import FORMATS
from wpray.table.study import mixed, tabulate

_ABOUT = (
    "Joins runs into one table: a row a policy, a column a suite, success rates with 95% intervals, and their average. "
    "The best of a column is bold only where the paired test says so."
)


def main(argv: Sequence[str]) -> int:
    """Print the table; return exit code 0. Raise BadInputError, which is exit code 2, if the runs do not fit."""
    options = _parser().parse_args(list(argv))
    if options.names is not None and len(options.names) != len(options.runs):
        raise BadInputError(f"--names: has {len(options.names)} names for {len(options.runs)} runs; give one for each")
    runs = [load(run) for run in options.runs]
    differences = mixed(runs)
    if differences and not options.mix:
        raise BadInputError(
            f"{'; '.join(differences)}: rates of other conditions are no table; --mix joins them anyway"
        )
    text = FORMATS[options.format](tabulate(runs, options.names))
    if options.out is None:
        print(text, end="")
    else:
        write_for_user(options.out, text.encode(), "--out")
    for difference in differences:
        print(f"Note: {difference}", file=sys.stderr)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.table", description=_ABOUT)
    parser.add_argument("runs", type=location, nargs="+", metavar="RUN", help="result folder, or its URL")
    parser.add_argument("--format", choices=sorted(FORMATS), default="md", help="md, latex (booktabs) or csv (md)")
    names = "a name for each run, in order; runs of one name share a row (policy and checkpoint)"
    parser.add_argument("--names", type=_names, metavar="A,B,...", help=names)
    parser.add_argument("--mix", action="store_true", help="join runs of other protocols, seeds or simulators, too")
    parser.add_argument("-o", "--out", type=file_to_write, metavar="FILE", help="write the table to FILE instead")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} has an empty name; give names such as ours,pi0")
    return names


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
