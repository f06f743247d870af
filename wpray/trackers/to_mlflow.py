"""MLflow: the server or store that `MLFLOW_TRACKING_URI` names, else MLflow's own default on this machine."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

import mlflow

from wpray.trackers.base import TaskTable, TrackedRun, TrackedState

_RUN_ID = "wpray.run_id"  # tag by which a resumed run is found
_STATUS = {"finished": "FINISHED", "stopped": "FAILED", "running": "KILLED"}
_LONGEST = 500  # characters of a parameter in any of MLflow's stores; config.json holds the whole
_LONGEST_NAME = 250
_NOT_IN_NAMES = re.compile(r"[^\w. :-]")  # MLflow refuses them, and paths that are not normal


class MlflowTracker:
    """A run of MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        experiment = mlflow.set_experiment(run.project)
        known = mlflow.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{_RUN_ID}` = '{run.run_id}'",
            max_results=1,
            output_format="list",
        )
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={_RUN_ID: run.run_id, "wpray.folder": run.folder})
            # MLflow forbids a parameter to change, as the number of environments may in a resume.
            mlflow.log_params({_parameter(name): str(value)[:_LONGEST] for name, value in run.config.items()})
        mlflow.log_dict(dict(run.config), "config.json")

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        """Log a point of each curve over episodes."""
        mlflow.log_metrics(dict(metrics), step=episodes)

    def log_table(self, table: TaskTable) -> None:
        """Log the table as tasks.csv."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
        mlflow.log_text(text.getvalue(), "tasks.csv")

    def log_report(self, page: Path) -> None:
        """Log the report as a file, which MLflow shows."""
        mlflow.log_artifact(str(page))

    def log_video(self, name: str, path: Path) -> None:
        """Log an MP4 as a file."""
        mlflow.log_artifact(str(path), "videos")

    def end(self, state: TrackedState) -> None:
        """Set the run's status."""
        mlflow.end_run(status=_STATUS[state])


def _parameter(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[-_LONGEST_NAME:]
