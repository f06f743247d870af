"""trackio: local, or a Space of Hugging Face if `TRACKIO_SPACE_ID` names one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trackio

from wpray.trackers.base import TaskTable, TrackedRun, TrackedState


class TrackioTracker:
    """A run of trackio."""

    def __init__(self, run: TrackedRun) -> None:
        name = f"{run.name} {run.run_id}"  # its runs have names only, by which a resume finds them
        trackio.init(
            project=run.project,
            name=name,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._episodes = 0

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        """Log a point of each curve over episodes."""
        self._episodes = episodes
        trackio.log(dict(metrics), step=episodes)

    def log_table(self, table: TaskTable) -> None:
        """Log a trackio.Table."""
        rows = [list(row) for row in table.rows]
        trackio.log({"tasks": trackio.Table(columns=list(table.columns), data=rows)}, step=self._episodes)

    def log_report(self, page: Path) -> None:
        """Log the report as HTML."""
        trackio.log({"report": trackio.Html(page, inject=False)}, step=self._episodes)

    def log_video(self, name: str, path: Path) -> None:
        """Log an MP4 as it is."""
        trackio.log({f"videos/{name}": trackio.Video(path, caption=name)}, step=self._episodes)

    def end(self, state: TrackedState) -> None:
        """Wait until everything is stored."""
        trackio.finish()
