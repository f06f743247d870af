"""`python -m wpray.video RUN_DIR`: renders recorded episodes: any of them, any camera, any size."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from wpray import quiet_ray
from wpray.command import run_command
from wpray.config import Config, TaskIds
from wpray.config_cli import ArgumentParser, validate
from wpray.errors import BadInputError

if TYPE_CHECKING:
    from wpray.results import Run
    from wpray.results.videos import VideoFolder

_ABOUT = "Renders videos of a run's recorded episodes (record: full), in parallel, without running them again."
_SIZES = (16, 2048)  # smallest and largest, pixels


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 all rendered, 1 some could not be, 2 bad input."""
    options = _parser().parse_args(list(argv))
    quiet_ray.prepare(joins_a_cluster=options.address is not None)
    from wpray.results import load
    from wpray.results.videos import VideoFolder

    run = load(options.run_dir)
    config = _config(run, options)
    own = VideoFolder.of(run.path, config.video_out_path)
    videos = VideoFolder.of(run.path, options.out) if options.out else own
    failed = _render(run, config, options, videos)
    if videos.path.resolve() == own.path.resolve():
        _remember(run, videos)
    return 1 if failed else 0


def _render(run: Run, config: Config, options: argparse.Namespace, videos: VideoFolder) -> int:
    from wpray.video.choose import choose
    from wpray.video.frames import CAMERAS, Look
    from wpray.video.render import jobs_for, render

    rows = choose([row for row in run.episodes.to_pylist() if _wanted(row, options)], "all", options.max_count)
    if not rows:
        raise BadInputError(f"{run.path}: no episode is as asked (errors have no video); ask for others")
    every = config.video.every if options.every is None else options.every
    fps = config.video.fps if options.fps is None else options.fps
    look = Look(tuple(options.camera or CAMERAS), options.size, every, fps, options.overlay or config.video.overlay)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return render(config, jobs_for(run, rows), look, videos, Console(soft_wrap=True))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.video", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="result folder")
    choices = parser.add_argument_group("which episodes (default: all)")
    choices.add_argument("--status", nargs="+", choices=("success", "failure"), help="of these outcomes only")
    choices.add_argument("--tasks", type=_ids, metavar="IDS", help="of these tasks only, such as 0,3 or 0-4")
    choices.add_argument("--trials", type=_ids, metavar="IDS", help="these trials only")
    choices.add_argument("--max-count", type=_positive, metavar="N", help="at most N, failures first")
    look = parser.add_argument_group("how they look")
    look.add_argument("--camera", nargs="+", metavar="NAME", help="side by side (agentview robot0_eye_in_hand)")
    look.add_argument("--size", type=_size, default=256, help="height and width of each image, pixels (256)")
    look.add_argument("--every", type=_positive, metavar="N", help="keep every n-th control step (as the run's config)")
    look.add_argument("--fps", type=_positive, help="frames per second (as the run's config)")
    look.add_argument("--overlay", action="store_true", help="write step, waypoint and outcome in the corner")
    where = parser.add_argument_group("where")
    where.add_argument("--out", metavar="DIR", help="folder of the files (the run's own video folder)")
    where.add_argument("--num-actors", type=_positive, metavar="N", help="videos rendered at once (as many as fit)")
    where.add_argument("--address", help="a Ray cluster to render on (this machine)")
    return parser


def _config(run: Run, options: argparse.Namespace) -> Config:
    config = validate(run.info.get("config", {}))
    actors = options.num_actors or "auto"
    here = config.ray.model_copy(update={"address": options.address, "num_env_actors": actors})
    return config.model_copy(update={"ray": here, "num_parallel": None})


def _wanted(row: dict[str, Any], options: argparse.Namespace) -> bool:
    asked = ((options.status, "status"), (options.tasks, "task_id"), (options.trials, "trial"))
    return all(allowed is None or row[name] in allowed for allowed, name in asked)


def _remember(run: Run, videos: VideoFolder) -> None:
    """Notes the videos in episodes.parquet, unless a driver is at work in the folder: it will do that at its end."""
    from wpray.results.merge import merge
    from wpray.results.writer import RunFolder

    folder = RunFolder(run.path)
    if folder.parts() and not folder.is_locked():
        merge(folder, videos)


def _ids(text: str) -> list[int]:
    try:
        return TypeAdapter(TaskIds).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,3 or 0-4") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _size(text: str) -> int:
    smallest, largest = _SIZES
    size = _positive(text)
    if size % 2 or not smallest <= size <= largest:
        raise argparse.ArgumentTypeError(f"{text} is not an even number from {smallest} to {largest}")
    return size


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
