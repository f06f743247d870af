"""Outcomes of a run, computed from its tables for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wpray.results.reader import Run
from wpray.results.statistics import Rate, average_of_tried, stratified, wilson
from wpray.types import EpisodeRow


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Episodes of one task, in trial order."""

    suite: str
    task_id: int
    label: str  # its id, with the suite in a run of several
    instruction: str
    rows: list[EpisodeRow]

    @property
    def rate(self) -> Rate:
        """Success rate over the episodes with an outcome."""
        return wilson(*_counts(self.rows))

    @property
    def errors(self) -> int:
        """Number of episodes without an outcome."""
        return sum(row["status"] == "error" for row in self.rows)

    @property
    def mean_steps(self) -> float | None:
        """Mean control steps of the successes."""
        return mean([row["num_steps"] for row in self.rows if row["success"]])


@dataclass(frozen=True, slots=True)
class SuiteFacts:
    """Episodes of one suite."""

    suite: str
    tasks: list[TaskFacts]

    @property
    def counts(self) -> list[tuple[int, int]]:
        """(successes, episodes with an outcome) of each task."""
        return [_counts(task.rows) for task in self.tasks]

    @property
    def rate(self) -> Rate:
        """Success rate with an interval stratified by task."""
        return stratified(self.counts)

    @property
    def errors(self) -> int:
        """Number of episodes without an outcome."""
        return sum(task.errors for task in self.tasks)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Outcomes of a run."""

    tasks: list[TaskFacts]
    rows: list[EpisodeRow]
    planned: int  # episodes that the configuration asks for

    @property
    def overall(self) -> Rate:
        """Success rate with an interval stratified by task; the average over suites if there are several."""
        return average_of_tried([suite.counts for suite in self.suites])

    @property
    def suites(self) -> list[SuiteFacts]:
        """Tasks by suite, in order."""
        groups: dict[str, list[TaskFacts]] = {}
        for task in self.tasks:
            groups.setdefault(task.suite, []).append(task)
        return [SuiteFacts(suite, tasks) for suite, tasks in groups.items()]

    @property
    def errors(self) -> int:
        """Number of episodes without an outcome."""
        return sum(task.errors for task in self.tasks)

    @property
    def steps_to_success(self) -> list[int]:
        """Return the control steps of every success."""
        return [row["num_steps"] for row in self.rows if row["success"]]

    @property
    def span_s(self) -> float:
        """Seconds from the first start to the last end."""
        return float(
            (max(row["ended_at"] for row in self.rows) - min(row["started_at"] for row in self.rows)).total_seconds()
        )


def collect(run: Run) -> RunFacts:
    """Compute the outcomes of `run`."""
    rows = run.episodes.to_pylist()
    groups: dict[tuple[str, int], list[EpisodeRow]] = {}
    for row in rows:
        groups.setdefault((row["suite"], row["task_id"]), []).append(row)
    several = len({suite for suite, _ in groups}) > 1
    tasks = [
        TaskFacts(
            suite,
            task_id,
            f"{suite} {task_id}" if several else str(task_id),
            group[0]["instruction"],
            sorted(group, key=lambda row: row["trial"]),
        )
        for (suite, task_id), group in sorted(groups.items())
    ]
    config = run.info["config"]
    guess = (config.get("num_trials_per_task") or 0) * len(config.get("tasks") or tasks)
    return RunFacts(tasks, rows, max(run.info.get("planned_episodes") or guess, len(rows)))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None if there are no values."""
    return sum(values) / len(values) if values else None


def _counts(rows: Sequence[EpisodeRow]) -> tuple[int, int]:
    outcomes = [row["success"] for row in rows if row["success"] is not None]
    return sum(outcomes), len(outcomes)
