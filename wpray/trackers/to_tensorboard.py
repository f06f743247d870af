"""TensorBoard: event files in the run's folder, written without TensorFlow."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from wpray.trackers.base import Cell, TaskTable, TrackedRun, TrackedState

_FOLDER = "tensorboard"
_FRAMES = 100  # of a GIF, at most
_GIF_FPS = 10
_SMALLER = 2  # GIFs are large


class TensorboardTracker:
    """Event files of TensorBoard."""

    def __init__(self, run: TrackedRun) -> None:
        self._writer = SummaryWriter(str(Path(run.folder) / _FOLDER))
        settings = json.dumps(dict(run.config), indent=2, sort_keys=True)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in settings.splitlines()))
        self._episodes = 0

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        """Log a point of each curve over episodes."""
        self._episodes = episodes
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, episodes)
        self._writer.flush()

    def log_table(self, table: TaskTable) -> None:
        """Log the table as text, in Markdown."""
        rows = [table.columns, ["---"] * len(table.columns), *table.rows]
        self._writer.add_text("tasks", "\n".join(_markdown_row(row) for row in rows), self._episodes)

    def log_report(self, page: Path) -> None:
        """Log where the report lies, because TensorBoard shows no HTML."""
        self._writer.add_text("report", f"[{page.name}]({page.absolute().as_uri()})", self._episodes)

    def log_video(self, name: str, path: Path) -> None:
        """Log a small GIF, which TensorBoard plays among its images."""
        frames = iio.imread(path)
        every = -(-len(frames) // _FRAMES)
        shown = np.ascontiguousarray(frames[::every, ::_SMALLER, ::_SMALLER])
        gif = io.BytesIO()
        iio.imwrite(gif, shown, extension=".gif", duration=1000 / _GIF_FPS, loop=0)
        height, width = shown.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue())
        summary = Summary(value=[Summary.Value(tag=f"videos/{name}", image=image)])
        self._writer.file_writer.add_summary(summary, self._episodes)

    def end(self, state: TrackedState) -> None:
        """Write what is left."""
        self._writer.add_text("state", state, self._episodes)
        self._writer.close()


def _markdown_row(row: Iterable[Cell]) -> str:
    return f"| {' | '.join('-' if cell is None else str(cell).replace('|', '/') for cell in row)} |"
