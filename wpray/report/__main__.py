"""`python -m wpray.report RUN_DIR`: writes a run's report.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wpray.cli.arguments import file_to_write, location, number
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.report.page import EMBED_BYTES, write_report

_ABOUT = "Writes one self-contained HTML page about a run, finished or not. It opens in any browser, without a network."


def main(argv: Sequence[str]) -> int:
    """Write the report; return exit code 0. Raise BadInputError, which is exit code 2."""
    parser = ArgumentParser(prog="python -m wpray.report", description=_ABOUT)
    parser.add_argument("run_dir", type=location, metavar="RUN_DIR", help="result folder, or its URL")
    where = "where to write it (RUN_DIR/report.html; of a URL, beside its copy here)"
    parser.add_argument("-o", "--out", type=file_to_write, metavar="FILE", help=where)
    parser.add_argument(
        "--embed-mb",
        type=number(0, 100_000),
        default=EMBED_BYTES / 1e6,
        metavar="MB",
        help="videos inside the page, at most (%(default)g)",
    )
    options = parser.parse_args(list(argv))
    print(write_report(options.run_dir, options.out, int(options.embed_mb * 1e6)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
