"""Command-line options that select recorded episodes and the place to render them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from wpray.cli.arguments import whole
from wpray.cli.configuration import validate
from wpray.cli.parser import ArgumentParser
from wpray.config import Config
from wpray.config.value_types import TaskIds
from wpray.errors import BadInputError, DamagedRunError

if TYPE_CHECKING:
    from wpray.results import Run
_NOT_OF_VIDEOS = frozenset({"num_parallel", "output_dir", "resume", "retry", "stop_when", "batching"})


def add_choices(parser: ArgumentParser) -> None:
    """Add the options that `matches_options` reads, and `max_count`."""
    choices = parser.add_argument_group("which episodes (default: all)")
    choices.add_argument("--status", nargs="+", choices=("success", "failure"), help="of these outcomes only")
    choices.add_argument("--tasks", type=_ids, metavar="IDS", help="of these tasks only, such as 0,3 or 0-4")
    choices.add_argument("--trials", type=_ids, metavar="IDS", help="these trials only")
    choices.add_argument("--max-count", type=whole(1), metavar="N", help="at most N, failures first")


def add_where(parser: ArgumentParser) -> Any:
    """Add the options that `rendering_config` reads. Return their group, so that a caller can add to it."""
    where = parser.add_argument_group("where")
    where.add_argument(
        "--num-actors", type=whole(1, 10_000), metavar="N", help="episodes rendered at once (as many as fit)"
    )
    where.add_argument("--address", help="a Ray cluster to render on (this machine)")
    return where


def matches_options(row: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Return True if the options select the episode."""
    filters = ((options.status, "status"), (options.tasks, "task_id"), (options.trials, "trial"))
    return all(allowed is None or row[name] in allowed for allowed, name in filters)


def rendering_config(run: Run, options: argparse.Namespace) -> Config:
    """Return the run's configuration with the actors of the options. Raise BadInputError if it is not usable."""
    known = {
        name: value
        for name, value in run.info["config"].items()
        if name in Config.model_fields and name not in _NOT_OF_VIDEOS  # older runs may hold unusual values there
    }
    if "task_suite" not in known:
        raise DamagedRunError(
            f"{run.location}: the config in its run.json names no task_suite, so nothing can be rendered"
        )
    try:
        config = validate(known)  # without the keys of later versions, because they do not change a scene's images
    except BadInputError as error:
        raise DamagedRunError(f"{run.location}: the config in its run.json is not usable ({error})") from error
    actors = options.num_actors or "auto"
    here = config.ray.model_copy(update={"address": options.address, "num_env_actors": actors})
    return config.model_copy(update={"ray": here, "num_parallel": None})


def cameras_of(config: Config, named: Sequence[str] | None) -> tuple[str, ...]:
    """Return the cameras to show side by side: the named ones, else the benchmark's usual ones.

    Raises BadInputError for a name that the benchmark's scenes do not have.
    """
    benchmark = config.load_benchmark()
    if not benchmark.cameras:
        raise BadInputError(f"task_suite: the benchmark of {config.task_suite} has no cameras, so there are no videos")
    for name in named or ():
        if name not in benchmark.cameras:
            there = ", ".join(benchmark.cameras)
            raise BadInputError(f"--camera: {config.task_suite} has no camera {name[:40]!r}; there are {there}")
    return tuple(named or benchmark.video_cameras)


def _ids(text: str) -> list[int]:
    try:
        return TypeAdapter(TaskIds).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,3 or 0-4") from error
