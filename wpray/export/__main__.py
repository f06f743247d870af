"""`python -m wpray.export lerobot RUN_DIR OUT`: a run's recorded episodes as a LeRobotDataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from wpray.cli.arguments import folder_to_write, location
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env
from wpray.errors import BadInputError, RunStoppedError
from wpray.video.options import add_choices, add_where, matches_options, rendering_config

if TYPE_CHECKING:
    from wpray.export.lerobot import LeRobotEpisode, Pixels
    from wpray.results import Run

_ABOUT = (
    "Writes recorded episodes as a LeRobotDataset (format v3.0): states, actions, instructions, and videos of both "
    "cameras as the policy sees them, rendered from the recorded states. Needs no other package."
)
_PIXELS_EVERY = 10  # image statistics read every n-th frame
_KEYFRAME_EVERY = 2  # frames between key frames: few, because training reads single frames


def main(argv: Sequence[str]) -> int:
    """Write the data set; return exit code 0, or 1 if some videos could not be rendered. Raise BadInputError."""
    options = _parser().parse_args(list(argv))
    process_env.prepare(joins_a_cluster=options.address is not None)
    from wpray.export import lerobot
    from wpray.results import load
    from wpray.video.selection import select_episodes

    run, out = load(options.run_dir), options.out
    if out.exists():
        raise BadInputError(f"{out}: exists already; name a new folder")
    rows = select_episodes(
        [row for row in run.episodes.to_pylist() if matches_options(row, options)], "all", options.max_count
    )
    episodes = [episode for row in rows if len((episode := lerobot.read_episode(run, row)).action)]
    if not episodes:
        raise BadInputError(f"{run.path}: no episode matches the options (errors have no trajectory); select others")
    if options.videos:
        _check_recordings(run, episodes)
    try:
        pixels = _render(run, episodes, options, out) if options.videos else [{} for _ in episodes]
        lerobot.write(out, lerobot.features(run), episodes, pixels)
    except OSError as error:
        raise BadInputError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from error
    print(f"{out}: {len(episodes)} episodes, {sum(len(episode.action) for episode in episodes)} frames")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.export", description=_ABOUT)
    parser.add_argument("format", choices=("lerobot",), help="format of the data set")
    parser.add_argument("run_dir", type=location, metavar="RUN_DIR", help="result folder, or its URL")
    parser.add_argument(
        "out", type=folder_to_write, metavar="OUT", help="folder of the data set; it must not exist yet"
    )
    parser.add_argument("--no-videos", dest="videos", action="store_false", help="states and actions only")
    add_choices(parser)
    add_where(parser)
    return parser


def _check_recordings(run: Run, episodes: Sequence[LeRobotEpisode]) -> None:
    """Raise BadInputError if an episode has no states to render, before anything is written."""
    from wpray.types import TrialKey
    from wpray.video.frames import check_recording

    for episode in episodes:
        row = episode.row
        try:
            check_recording(run.trajectory(TrialKey.from_row(row)), run.state_columns)
        except BadInputError as error:
            where = f"{run.location}: task {row['task_id']} trial {row['trial']}"
            raise BadInputError(f"{where}: {error}; --no-videos exports states and actions only") from error


def _render(
    run: Run, episodes: Sequence[LeRobotEpisode], options: argparse.Namespace, out: Path
) -> list[dict[str, Pixels]]:
    """Render every episode's videos into the data set, camera by camera; return the levels of their pixels."""
    from wpray.export import lerobot
    from wpray.results.videos import VideoFolder
    from wpray.video.frames import VideoStyle
    from wpray.video.render import jobs_for, render

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    jobs = jobs_for(run, [episode.row for episode in episodes])
    config = rendering_config(run, options)
    benchmark, fps = config.load_benchmark(), lerobot.features(run).fps
    cameras, rotated = benchmark.video_cameras, lerobot.pictures_rotated(run, benchmark.turns_pictures)
    keys = lerobot.video_keys(len(cameras))
    for key, camera in zip(keys, cameras, strict=True):
        style = VideoStyle((camera,), lerobot.IMAGE_SIZE, 1, fps, rotated=rotated, keyframe_every=_KEYFRAME_EVERY)
        named = [replace(job, name=lerobot.video_file(key, number)) for number, job in enumerate(jobs)]
        for job in named:
            (out / job.name).parent.mkdir(parents=True, exist_ok=True)
        failed = render(config, named, style, VideoFolder(out, ""), Console(soft_wrap=True))
        if failed:
            raise RunStoppedError(f"{failed} videos could not be rendered, so {out} is no data set")
    return [
        {key: _pixels(out / lerobot.video_file(key, number), episode) for key in keys}
        for number, episode in enumerate(episodes)
    ]


def _pixels(video: Path, episode: LeRobotEpisode) -> Pixels:
    """Return the pixel levels of every n-th frame that belongs to the data set."""
    import imageio.v2 as imageio
    import numpy as np

    from wpray.export.lerobot import Pixels
    from wpray.export.statistics import levels

    shown = range(episode.skipped, episode.skipped + len(episode.action), _PIXELS_EVERY)
    reader: Any = imageio.get_reader(video)
    with reader:
        images = [np.asarray(image) for index, image in enumerate(reader) if index in shown]
    return Pixels(levels(images), len(images))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
