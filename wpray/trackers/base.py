"""Trackers, as the rest of wpray sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

TrackedState = Literal["running", "finished", "stopped"]  # running: the run's process has died
Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as a tracker lists it."""

    run_id: str  # a resumed run keeps it, and continues the tracker's run
    name: str
    project: str
    folder: str  # of the results
    config: Mapping[str, Any] = field(default_factory=dict)  # by dotted name, with versions and commit


@dataclass(frozen=True, slots=True)
class TaskTable:
    """Outcomes by task."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Tracker(Protocol):
    """Connection to a tracker, in a process of its own. What any method raises is reported, and the run continues."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin the run, or continue it."""

    def log_rates(self, episodes: int, metrics: Mapping[str, float]) -> None:
        """Log success rates with their intervals after so many `episodes`."""

    def log_table(self, table: TaskTable) -> None:
        """Log the outcomes by task, at the end."""

    def log_report(self, page: Path) -> None:
        """Log the report, an HTML file."""

    def log_video(self, name: str, path: Path) -> None:
        """Log the video of an episode, an MP4 file."""

    def end(self, state: TrackedState) -> None:
        """End the run and deliver what was logged."""
