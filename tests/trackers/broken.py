"""Trackers that do what trackers do on a bad day; given by their import path."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from wpray.trackers.base import TaskTable, TrackedRun, TrackedState


class Files:
    """Works: writes a line for each call to the file `calls` in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        self._calls = Path(run.folder) / "calls"
        self._note("begin", run.run_id, run.project)

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        self._note("rates", episodes, metrics.get("success_rate"))

    def log_table(self, table: TaskTable) -> None:
        self._note("table", len(table.rows))

    def log_report(self, page: Path) -> None:
        self._note("report", page.name)

    def log_video(self, name: str, path: Path) -> None:
        self._note("video", name)

    def end(self, state: TrackedState) -> None:
        self._note("end", state)

    def _note(self, *what: object) -> None:
        with self._calls.open("a") as file:
            file.write(" ".join(map(str, what)) + "\n")


class RaisesAtOnce(Files):
    def __init__(self, run: TrackedRun) -> None:
        raise ConnectionError("no\nnetwork")


class RaisesOften(Files):
    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("no network")


class Exits(Files):
    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        raise SystemExit(3)


class Dies(Files):
    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        os._exit(3)


class Hangs(Files):
    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        time.sleep(3600)


class Prints(Files):
    def __init__(self, run: TrackedRun) -> None:
        print("welcome to the tracker")
        super().__init__(run)
