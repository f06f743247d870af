"""`python -m wpray.report RUN_DIR`: writes a run's report.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wpray.cli.arguments import file_to_write, location, number, whole
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
    live = "serve it on this machine instead, refreshed by itself while the run is under way; Ctrl-C ends it"
    parser.add_argument("--live", action="store_true", help=live)
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="with --live: the port (any that is free)")
    options = parser.parse_args(list(argv))
    if options.live:
        return _serve(options.run_dir, options.port)
    print(write_report(options.run_dir, options.out, int(options.embed_mb * 1e6)))
    return 0


def _serve(run: str, port: int) -> int:
    from wpray.report.live import LiveServer

    with LiveServer(run, port) as server:
        print(f"Live report: {server.url}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
