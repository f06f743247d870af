"""`python -m wpray.compare RUN_A RUN_B`: test whether B is better than A, on the same trials."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wpray.cli.arguments import file_to_write, location, number, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.results import Run, load
from wpray.results.atomic import write_for_user
from wpray.results.paired import PairCounts, difference_interval, mcnemar_p, trials_needed
from wpray.results.pairing import Comparison, Pair, compare, count, obstacles, rate, remarks
from wpray.results.summary import add_columns, one_line

_LEVEL = 0.05
_POWER = 0.8
_ABOUT = (
    "Compares two runs trial by trial: exact McNemar test, difference of the success rates with its 95% interval "
    "(Bonett and Price, for pairs), tasks, and the trials that flipped. Errors are left out, in pairs."
)


def main(argv: Sequence[str]) -> int:
    """Compare two runs; return exit code 0. Raises BadInputError if they cannot be paired."""
    options = _parser().parse_args(list(argv))
    a, b = load(options.run_a), load(options.run_b)
    differences = obstacles(a, b)
    if differences and not options.anyway:
        raise BadInputError(
            f"the runs differ in {'; '.join(differences)}: the same trial is not the same there; "
            "compare them nevertheless with --anyway"
        )
    comparison = compare(a, b)
    if not comparison.pairs:
        raise BadInputError("the runs have no (suite, task, trial) in common that has an outcome in both")
    console = Console(soft_wrap=True, highlight=False)
    for text in (*differences, *remarks(a, b)):
        console.print(f"[yellow]Note: the runs differ in {escape(text)}[/]")
    _show(console, a, b, comparison, options.flips)
    if options.power is not None:
        console.print(power_line(comparison, options.power / 100))
    if options.json:
        data = json.dumps(as_json(comparison), indent=2) + "\n"
        write_for_user(options.json, data.encode(), "--json")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.compare", description=_ABOUT)
    parser.add_argument("run_a", type=location, metavar="RUN_A", help="result folder of the reference, or its URL")
    parser.add_argument("run_b", type=location, metavar="RUN_B", help="result folder to compare with it, or its URL")
    parser.add_argument("--anyway", action="store_true", help="compare even if seed, protocol or simulator differ")
    parser.add_argument("--flips", type=whole(0), default=20, metavar="N", help="list at most N flipped trials (20)")
    parser.add_argument(
        "--power",
        type=number(0, 100, above=True),
        metavar="X",
        help="also: how many trials show X points of difference",
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the numbers to FILE, too")
    return parser


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return every number of the comparison, for a program."""
    pairs = comparison.counts
    low, high = difference_interval(pairs)
    return {
        "pairs": pairs.total,
        "both": pairs.both,
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "neither": pairs.neither,
        "rate_a": rate(comparison.pairs, "a"),
        "rate_b": rate(comparison.pairs, "b"),
        "difference": pairs.difference,
        "interval_95": [low, high],
        "mcnemar_p": mcnemar_p(pairs),
        "left_out": {"errors": comparison.errors, "only_in_a": comparison.only_in_a, "only_in_b": comparison.only_in_b},
        "flipped": [list(pair.key) for pair in comparison.pairs if pair.flipped],
    }


def verdict(pairs: PairCounts) -> str:
    """Return the result of the test in words."""
    p = mcnemar_p(pairs)
    if p >= _LEVEL:
        return f"no difference shown at the {_LEVEL:.0%} level (which does not show that there is none)"
    return f"B is {'better' if pairs.difference > 0 else 'worse'} than A (at the {_LEVEL:.0%} level)"


def power_line(comparison: Comparison, difference: float) -> str:
    """Return how many trials would show `difference` (a share), if as many pairs flip as in this comparison."""
    pairs = comparison.counts
    share = max((pairs.discordant + 1) / (pairs.total + 2), difference)
    needed = trials_needed(difference, share, _LEVEL, _POWER)
    if needed is None:
        return f"A difference of {100 * difference:g} points is too small for any number of trials in reach."
    tasks = len(comparison.by_task())
    return (
        f"To show a difference of {100 * difference:g} points with {_POWER:.0%} probability at the {_LEVEL:.0%} level, "
        f"if {share:.1%} of the trials flip: {needed} trials ({-(-needed // tasks)} for each of {tasks} tasks)"
    )


def _show(console: Console, a: Run, b: Run, comparison: Comparison, most_flips: int) -> None:
    for side, run in (("A", a), ("B", b)):
        config = run.info["config"]
        checkpoint = f", {run.checkpoint}" if run.checkpoint else ""
        console.print(f"[bold]{side}[/]  {escape(run.location)}  ({escape(str(config.get('policy')) + checkpoint)})")
    console.print(_task_table(comparison))
    console.print()
    flipped = [pair for pair in comparison.pairs if pair.flipped]
    if flipped:
        _show_flips(console, a, b, flipped[:most_flips])
        if len(flipped) > most_flips:
            console.print(f"... and {len(flipped) - most_flips} more (--flips {len(flipped)})")
        console.print()
    _show_numbers(console, comparison)


def _show_numbers(console: Console, comparison: Comparison) -> None:
    pairs = comparison.counts
    low, high = difference_interval(pairs)
    left_out = [
        (comparison.errors, "with an error"),
        (comparison.only_in_a, "only in A"),
        (comparison.only_in_b, "only in B"),
    ]
    said = ", ".join(f"{number} {why}" for number, why in left_out if number)
    console.print(f"{pairs.total} paired trials" + (f"; left out: {said}" if said else ""))
    console.print(
        f"both succeed {pairs.both}, only A {pairs.only_a}, only B {pairs.only_b}, neither {pairs.neither}; "
        f"exact McNemar test p = {mcnemar_p(pairs):.4g}"
    )
    rates = f"A {rate(comparison.pairs, 'a'):.1%}, B {rate(comparison.pairs, 'b'):.1%}"
    console.print(
        f"[bold]{rates}: difference B - A {_signed(pairs.difference)} points[/], "
        f"95% interval {_signed(low)} to {_signed(high)}"
    )
    console.print(f"[bold]{verdict(pairs)}[/]")


def _task_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    add_columns(table, ("pairs", "A", "B", "B - A", "only A", "only B"))
    for (_, task_id), pairs in comparison.by_task().items():
        counts = count(pairs)
        numbers = (f"{rate(pairs, 'a'):.1%}", f"{rate(pairs, 'b'):.1%}", _signed(counts.difference))
        flips = (str(counts.only_a), str(counts.only_b))
        table.add_row(str(task_id), one_line(pairs[0].a["instruction"]), str(counts.total), *numbers, *flips)
    return table


def _show_flips(console: Console, a: Run, b: Run, flipped: Sequence[Pair]) -> None:
    """Print a line for each trial and each of its videos; paths stay whole, so that they can be clicked and copied."""
    console.print("[bold]Trials that flipped[/]")
    for pair in flipped:
        outcomes = ("success" if row["success"] else "failure" for row in (pair.a, pair.b))
        console.print("task {} trial {}: A {}, B {}".format(*pair.key[1:], *outcomes))
        for side, run, row in (("A", a, pair.a), ("B", b, pair.b)):
            path = run.video(row["video_path"])
            if path is not None:
                console.print(f"    {side} [link={path.resolve().as_uri()}]{escape(str(path))}[/link]")


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
