"""Weights & Biases. `WANDB_MODE=offline` writes to the run's folder, for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from wpray.trackers.base import TaskTable, TrackedRun, TrackedState


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, run: TrackedRun) -> None:
        folder = os.environ.get("WANDB_DIR", run.folder)
        self._run = wandb.init(
            project=run.project,
            id=run.run_id,
            name=run.name,
            dir=folder,
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self._run.config.update(dict(run.config), allow_val_change=True)
        self._run.define_metric("episodes")
        self._run.define_metric("*", step_metric="episodes")  # no step of wandb's own, which a resume may not repeat

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        """Log a point of each curve over episodes."""
        self._run.log({"episodes": episodes, **metrics})

    def log_table(self, table: TaskTable) -> None:
        """Log a wandb.Table."""
        self._run.log({"tasks": wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])})

    def log_report(self, page: Path) -> None:
        """Log the report as an HTML panel."""
        self._run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def log_video(self, name: str, path: Path) -> None:
        """Log an MP4 as it is."""
        self._run.log({f"videos/{name}": wandb.Video(str(path), format="mp4")})

    def end(self, state: TrackedState) -> None:
        """Wait until everything is sent, or written if offline."""
        self._run.finish(exit_code=int(state != "finished"))
