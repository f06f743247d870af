"""`python -m wpray.video RUN_DIR`: videos of recorded episodes, with any camera at any size."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from wpray.cli.arguments import folder_to_write, location, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.video.options import add_choices, add_where, cameras_of, matches_options, rendering_config

if TYPE_CHECKING:
    from wpray.results import Run
    from wpray.results.videos import VideoFolder

_ABOUT = "Renders videos of a run's recorded episodes (record: full), in parallel, without running them again."
_SIZES = (16, 2048)  # smallest and largest, pixels


def main(argv: Sequence[str]) -> int:
    """Render the episodes that `argv` selects. Return 0, or 1 if some could not be rendered. Raise BadInputError."""
    options = _parser().parse_args(list(argv))
    process_env.prepare(joins_a_cluster=options.address is not None)
    from wpray.results import load
    from wpray.results.videos import VideoFolder

    run = load(options.run_dir)
    config = rendering_config(run, options)
    several = len(config.suites) > 1
    own = VideoFolder.of(run.path, config.video_out_path, several)
    videos = VideoFolder.of(run.path, str(options.out), several) if options.out else own
    failed = _render(run, config, options, videos)
    if videos.path.resolve() == own.path.resolve():
        _add_to_table(run, videos)
    return 1 if failed else 0


def _render(run: Run, config: Config, options: argparse.Namespace, videos: VideoFolder) -> int:
    from wpray.video.frames import VideoStyle
    from wpray.video.render import jobs_for, render, select_renderable
    from wpray.video.selection import select_episodes

    rows = select_episodes(
        [row for row in run.episodes.to_pylist() if matches_options(row, options)], "all", options.max_count
    )
    if not rows:
        raise BadInputError(
            f"{run.location}: no episode matches the options (episodes with errors have no video); select others"
        )
    every = config.video.every if options.every is None else options.every
    fps = config.video.fps if options.fps is None else options.fps
    cameras, overlay = cameras_of(config, options.camera), options.overlay or config.video.overlay
    style = VideoStyle(cameras, options.size, every, fps, overlay)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    whole = select_renderable(run, rows)
    failed = render(config, jobs_for(run, whole), style, videos, Console(soft_wrap=True))
    return failed + len(rows) - len(whole)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.video", description=_ABOUT)
    parser.add_argument("run_dir", type=location, metavar="RUN_DIR", help="result folder, or its URL")
    add_choices(parser)
    style = parser.add_argument_group("style")
    style.add_argument("--camera", nargs="+", metavar="NAME", help="side by side (the scene's and the wrist's)")
    style.add_argument("--size", type=_size, default=256, help="height and width of each image, pixels (256)")
    style.add_argument(
        "--every", type=whole(1), metavar="N", help="keep every n-th control step (default: the run's setting)"
    )
    style.add_argument("--fps", type=whole(1, 120), help="frames per second (the run's setting)")
    style.add_argument("--overlay", action="store_true", help="write step, waypoint and outcome in the corner")
    where = add_where(parser)
    where.add_argument(
        "--out", type=folder_to_write, metavar="DIR", help="folder of the files (the run's own video folder)"
    )
    return parser


def _add_to_table(run: Run, videos: VideoFolder) -> None:
    """Write the videos' paths to episodes.parquet, unless a driver works in the folder: it does so at its end."""
    from wpray.results.merge import merge
    from wpray.results.writer import RunFolder

    folder = RunFolder(run.path)
    if folder.is_locked():
        return
    folder.open()
    try:
        merge(folder, videos)
    finally:
        folder.close()


def _size(text: str) -> int:
    smallest, largest = _SIZES
    size = whole(smallest, largest)(text)
    if size % 2:
        raise argparse.ArgumentTypeError(f"{text} is not an even number from {smallest} to {largest}")
    return size


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
