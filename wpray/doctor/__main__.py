"""`python -m wpray.doctor [--config FILE] [--deep]`: checks of everything that a run needs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from wpray.checks import CheckResult
from wpray.cli.command import run_command
from wpray.cli.configuration import read_config
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env

_ABOUT = (
    "Checks everything that a run of this configuration needs: one line per check, with the remedy. "
    "Exit code: 0 all checks passed (warnings do not count), 1 a check failed, 2 the configuration cannot be read."
)
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def main(argv: Sequence[str]) -> int:
    """Run the checks and print a line for each. Return 1 if one failed, else 0. Raise BadInputError."""
    parser = ArgumentParser(prog="python -m wpray.doctor", description=_ABOUT)
    parser.add_argument("--deep", action="store_true", help="also run two trials that a policy is known to solve")
    config = read_config(argv, parser)
    process_env.prepare(joins_a_cluster=config.ray.address is not None)
    from wpray.doctor.checks import everything

    console, counts = Console(soft_wrap=True, highlight=False), Counter[str]()
    for result in everything(config, deep="--deep" in argv):
        counts[result.status] += 1
        console.print(_line(result))
    console.print(f"{counts['pass']} passed, {counts['warn']} warnings, {counts['fail']} failed")
    return int(counts["fail"] > 0)


def _line(result: CheckResult) -> Text:
    return Text.assemble((f"{result.status}  ", _STYLES[result.status]), f"{result.name:<15} {result.text}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
