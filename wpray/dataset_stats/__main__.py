"""`python -m wpray.dataset_stats RLDS_DIR -o dataset_statistics.json`: statistics of a data set for normalization.

For `action` (7) and `proprio` = observation/state (8): mean, std (ddof 0), min, max and the 1st and 99th percentile,
as numpy computes them in float32. Values are kept in temporary files, so memory holds one number per step at a time and
never an image.

`--layout 6d` writes the statistics of models that plan the gripper as a token: `proprio` is the pose alone (6), and the
action's gripper, which data sets store as -1 open and 1 close, counts as 1 open and 0 close.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wpray.cli.arguments import expanded_path
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.dataset_stats import rlds
from wpray.errors import BadInputError
from wpray.results.atomic import DiskFullError, write_atomic
from wpray.types import ACTION_DIM, PROPRIO_DIM, Float32Array

_PERCENTILES = {"q01": 1, "q99": 99}
_POSE_DIM = 6  # position and axis-angle, the first columns of the proprio; the finger joints follow

StatisticsLayout = Literal["8d", "6d"]


class FieldRows:
    """Rows of a field, kept in a temporary file until their statistics are computed."""

    def __init__(self, dim: int) -> None:
        self._dim, self.count = dim, 0
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="wpray-stats-")  # noqa: SIM115 - open as long as the object

    def add(self, rows: Float32Array) -> None:
        """Append (N, dim) rows. Raise ValueError if a value is not finite."""
        if not np.isfinite(rows).all():
            raise ValueError("a value is not finite")
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self.count += len(rows)

    def statistics(self) -> dict[str, list[float]]:
        """Return mean, std, min, max, q01 and q99 of each column: float32 values, moments summed in float64."""
        self._file.flush()
        rows = np.memmap(self._file, dtype=np.float32, mode="r", shape=(self.count, self._dim))
        columns = [_statistics(np.array(rows[:, index])) for index in range(self._dim)]
        return {name: [column[name] for column in columns] for name in columns[0]}


def _statistics(values: Float32Array) -> dict[str, float]:
    moments = {"mean": values.mean(dtype=np.float64), "std": values.std(dtype=np.float64)}
    extremes = {"min": values.min(), "max": values.max()}
    # One percentile at a time, because numpy would interpolate a list of them in float64.
    percentiles = {name: np.percentile(values, q) for name, q in _PERCENTILES.items()}
    return {name: float(np.float32(value)) for name, value in {**moments, **extremes, **percentiles}.items()}


@dataclass(slots=True)
class StatisticsBuilder:
    """Statistics of a data set, to which episodes are added."""

    layout: StatisticsLayout = "8d"
    num_trajectories: int = 0
    action: FieldRows = field(default_factory=lambda: FieldRows(ACTION_DIM))
    proprio: FieldRows = field(init=False)

    def __post_init__(self) -> None:
        self.proprio = FieldRows(_POSE_DIM if self.layout == "6d" else PROPRIO_DIM)

    def add(self, episode: rlds.RldsEpisode) -> None:
        """Add an episode. Raise ValueError if its lengths differ or a value is not finite."""
        if len(episode.action) != len(episode.proprio):
            raise ValueError(f"it has {len(episode.action)} actions and {len(episode.proprio)} states")
        with_token = self.layout == "6d"
        self.action.add(_with_opening(episode.action) if with_token else episode.action)
        self.proprio.add(episode.proprio[:, :_POSE_DIM] if with_token else episode.proprio)
        self.num_trajectories += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the values for the file. Raise ValueError if no step was added."""
        if self.action.count == 0:
            raise ValueError("its episodes have no steps")
        return {
            "action": self.action.statistics(),
            "proprio": self.proprio.statistics(),
            "num_samples": self.action.count,
            "num_transitions": self.action.count,
            "num_trajectories": self.num_trajectories,
        }


def _with_opening(action: Float32Array) -> Float32Array:
    """Return actions (N, 7) whose gripper is 1 open and 0 close instead of -1 open and 1 close."""
    opening = 1 - np.clip(action[:, -1:], 0, 1)
    return np.concatenate([action[:, :-1], opening], axis=1)


def main(argv: Sequence[str]) -> int:
    """Write the statistics of the data sets that `argv` names. Return 0; raise BadInputError."""
    args = _parser().parse_args(argv)
    _check_output(args.output)
    rlds.hide_gpus()
    folders = [found for folder in args.folders for found in rlds.find_data_sets(folder)]
    data_sets = [rlds.open_data_set(folder, args.split) for folder in folders]
    _check_names([data_set.name for data_set in data_sets], flat=args.flat)
    with _progress(sum(data_set.num_episodes for data_set in data_sets)) as progress:
        computed = {data_set.name: _compute(data_set, args.layout, progress) for data_set in data_sets}
    result = computed.popitem()[1] if args.flat else computed
    _write(args.output, result)
    for data_set in data_sets:
        facts = result if args.flat else result[data_set.name]
        print(f"{data_set.name}: {facts['num_transitions']} steps of {facts['num_trajectories']} episodes")
    print(f"written: {args.output}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m wpray.dataset_stats",
        description="Writes statistics of RLDS data sets, for dataset_statistics_path of a config.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=expanded_path,
        metavar="RLDS_DIR",
        help="NAME/1.0.0, or a folder that holds one or several data sets",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=expanded_path, metavar="FILE", help="the JSON file to write"
    )
    parser.add_argument(
        "--layout",
        choices=("8d", "6d"),
        default="8d",
        help="6d: for models with a gripper token (pose only; 1 is an open gripper)",
    )
    parser.add_argument("--flat", action="store_true", help="one data set, not nested under its name")
    parser.add_argument("--split", default="all", help="a TFDS split, such as train[:95%%] (default: all)")
    return parser


def _compute(data_set: rlds.DataSet, layout: StatisticsLayout, progress: Progress) -> dict[str, Any]:
    statistics, bar = StatisticsBuilder(layout), progress.task_ids[0]
    progress.update(bar, description=data_set.name)
    try:
        for episode in data_set.episodes():
            statistics.add(episode)
            progress.advance(bar)
        return statistics.as_dict()
    except BadInputError:
        raise
    except ValueError as error:
        raise BadInputError(f"{data_set.folder}: episode {statistics.num_trajectories}: {error}") from error


def _check_names(names: Sequence[str], *, flat: bool) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInputError(f"data set {twice[0]} is named twice; name it once")
    if flat and len(names) > 1:
        raise BadInputError(f"--flat: the file can hold one data set, not {', '.join(names)}; leave --flat out")


def _check_output(path: Path) -> None:
    """Raise BadInputError if the file cannot be written, before an hour is spent on reading the data."""
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder; name a file such as {path / 'dataset_statistics.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())
    except (OSError, DiskFullError) as error:
        raise BadInputError(f"{path}: cannot be written ({error}); choose another file") from error


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes, left"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        progress.add_task("reading", total=total)
        yield progress


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
