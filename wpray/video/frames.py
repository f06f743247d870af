"""Frames of a recorded episode, with the same pixels that were rendered while it ran."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from wpray.benchmarks.base import Environment
from wpray.errors import BadInputError, DamagedRunError
from wpray.results.encode import scene_from_metadata
from wpray.results.reader import matrix
from wpray.types import EpisodeStatus, FloatArray, ImageArray, SceneState, State, StateColumn, Task

SIZE = 256  # height and width at which the policy's images are rendered, pixels
_COLOURS: dict[EpisodeStatus, str] = {"success": "#7ee2a8", "failure": "#ffb199", "error": "#ffffff"}


@dataclass(frozen=True, slots=True)
class VideoStyle:
    """Cameras, size, speed and captions of a video."""

    cameras: tuple[str, ...]  # side by side
    size: int = SIZE  # height and width of each camera's image, pixels
    every: int = 1  # keep every n-th control step (the last one always)
    fps: int = 10
    overlay: bool = False
    rotated: bool = False  # turned by 180 degrees, as policies see images, which also swaps left and right
    keyframe_every: int = 250


@dataclass(frozen=True, slots=True)
class VideoJob:
    """An episode to render."""

    task: Task
    trial: int
    status: EpisodeStatus
    name: str  # name of the video's file
    trajectory: Path  # Parquet file of the episode, which an actor on another node cannot read
    segments: tuple[tuple[int, int], ...]  # (first control step, waypoint) of each segment, in order
    state_columns: tuple[StateColumn, ...]  # of the trajectory, which rendering needs


@dataclass(frozen=True, slots=True)
class Recording:
    """The part of a trajectory that rendering needs."""

    states: Mapping[str, FloatArray]  # column of the benchmark's states -> (N, width)
    scene: SceneState | None
    steps: int  # N

    def state(self, step: int) -> State:
        """Return the state after a control step."""
        return {name: values[step] for name, values in self.states.items()}


def read_recording(trajectory: bytes, columns: Sequence[StateColumn]) -> Recording:
    """Read the states of every step. Raise BadInputError if the file lacks a column (`record: light`)."""
    try:
        table = pq.read_table(io.BytesIO(trajectory))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedRunError(f"the trajectory is damaged ({' '.join(str(error).split())[:200]})") from error
    check_recording(table, columns)
    states = {column.name: matrix(table, column.name).astype(column.dtype) for column in columns}
    return Recording(states, scene_from_metadata(table.schema.metadata or {}), table.num_rows)


def check_recording(trajectory: pa.Table, columns: Iterable[StateColumn]) -> None:
    """Raise BadInputError if a trajectory lacks one of the benchmark's state columns (`record: light`)."""
    if {column.name for column in columns} - set(trajectory.column_names):
        raise BadInputError("record: the trajectory lacks the simulator's state; videos need runs with record full")


def select_steps(num_steps: int, every: int) -> list[int]:
    """Return every n-th step from the first, and the last one, because it shows the outcome."""
    steps = list(range(0, num_steps, every))
    return steps if not steps or steps[-1] == num_steps - 1 else [*steps, num_steps - 1]


def frames(env: Environment, job: VideoJob, trajectory: bytes, style: VideoStyle) -> Iterator[ImageArray]:
    """Yield (size, cameras x size, 3) images of the task that `env` has loaded: upright, cameras side by side.

    `trajectory` is the content of the job's trajectory file.
    """
    recording = read_recording(trajectory, job.state_columns)
    count = recording.steps
    for step in select_steps(count, style.every):
        state = recording.state(step)
        views = [
            env.render(state, recording.scene, camera=camera, height=style.size, width=style.size)
            for camera in style.cameras
        ]
        image: ImageArray = np.concatenate([view[:, ::-1] if style.rotated else view for view in views], axis=1)
        yield _captioned(image, caption(job, step, count), job.status) if style.overlay else image


def caption(job: VideoJob, step: int, count: int) -> str:
    """Return a caption such as 'step 85/119  waypoint 4  success'."""
    waypoint = _waypoint_at(job.segments, step)
    aim = "" if waypoint is None else f"waypoint {waypoint + 1}  "
    return f"step {step + 1}/{count}  {aim}{job.status}"


def _waypoint_at(segments: Sequence[tuple[int, int]], step: int) -> int | None:
    begun = [waypoint for first, waypoint in segments if first <= step]
    return begun[-1] if begun else None


def _captioned(image: ImageArray, text: str, status: EpisodeStatus) -> ImageArray:
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height = max(10, image.shape[0] // 20)
    font = ImageFont.load_default(size=height)
    box = draw.textbbox((height // 2, height // 2), text, font=font)
    draw.rectangle((0, 0, box[2] + height // 2, box[3] + height // 2), fill="#202020")
    draw.text((height // 2, height // 2), text, font=font, fill=_COLOURS[status])
    return np.asarray(picture)
