"""Summary of a run's outcomes, for the log and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from wpray.results.statistics import Rate, average_of_tried, stratified, wilson
from wpray.types import EpisodeStatus, Task, TaskKey, TrialKey


@dataclass(slots=True)
class TaskTally:
    """Counts of a task's episodes."""

    task: Task
    planned: int
    start: int = 0  # the first trial
    wanted: int | None = None  # successes after which no further trial runs
    successes: int = 0
    failures: int = 0
    errors: int = 0
    steps_to_success: int = 0  # summed
    statuses: dict[int, EpisodeStatus] = field(default_factory=dict)  # by trial

    def add(self, trial: int, status: EpisodeStatus, num_steps: int) -> None:
        """Count one episode."""
        self.statuses[trial] = status
        if status == "success":
            self.successes += 1
            self.steps_to_success += num_steps
        elif status == "failure":
            self.failures += 1
        else:
            self.errors += 1

    @property
    def contiguous_prefix(self) -> int:
        """Number of trials from the first on that have a row, without a gap."""
        trials = range(self.start, self.start + self.planned)
        return next((trial - self.start for trial in trials if trial not in self.statuses), self.planned)

    @property
    def enough(self) -> bool:
        """True if no further trial is wanted."""
        return self.wanted is not None and self.successes >= self.wanted

    @property
    def to_run(self) -> int:
        """Number of trials that run: once enough of them are successes, those that have run."""
        return len(self.statuses) if self.enough else self.planned

    def first(self, trials: int) -> tuple[int, int]:
        """Return (successes, episodes with an outcome) of the first `trials`."""
        seen = [self.statuses[self.start + number] for number in range(trials)]
        return seen.count("success"), len(seen) - seen.count("error")

    @property
    def counts(self) -> tuple[int, int]:
        """(successes, episodes that have an outcome)."""
        return self.successes, self.successes + self.failures

    @property
    def rate(self) -> Rate:
        """Success rate over the episodes that have an outcome."""
        return wilson(*self.counts)


@dataclass(slots=True)
class Tally:
    """Running counts of a run's episodes."""

    tasks: dict[TaskKey, TaskTally] = field(default_factory=dict)
    retried: int = 0  # trials with a failed attempt that was followed by another
    attempt_errors: Counter[str] = field(default_factory=Counter)  # errors of failed attempts, by kind

    @classmethod
    def planned(cls, planned: Iterable[tuple[Task, int]], start: int = 0, wanted: int | None = None) -> Tally:
        """Return a tally of `(task, number of trials)` with nothing done yet.

        `start` is the first trial of each, `wanted` how many successes end a task.
        """
        return cls({task.key: TaskTally(task, count, start, wanted) for task, count in planned})

    def add(self, key: TrialKey, status: EpisodeStatus, num_steps: int, retried: Sequence[str] = ()) -> None:
        """Count the episode of the trial `key`; `retried` are the kinds of errors of earlier attempts."""
        self.tasks[key.task].add(key.init_state, status, num_steps)
        self.retried += bool(retried)
        self.attempt_errors.update(retried)

    @property
    def rows(self) -> Sequence[TaskTally]:
        """Return the tasks in order."""
        return [self.tasks[key] for key in sorted(self.tasks)]

    @property
    def overall(self) -> Rate:
        """The run's success rate, its interval stratified by task; the average over suites if there are several."""
        return average_of_tried([[row.counts for row in rows] for rows in self.suites.values()])

    @property
    def suites(self) -> dict[str, list[TaskTally]]:
        """Tasks by suite, in order."""
        groups: dict[str, list[TaskTally]] = {}
        for row in self.rows:
            groups.setdefault(row.task.suite, []).append(row)
        return groups

    @property
    def balanced_rate(self) -> Rate:
        """Rate over the trials that all tasks have run, in which neither easy tasks nor quick successes weigh more.

        Successes end early and tasks run one after the other, so the episodes finished at a moment are a biased sample.
        """
        rounds = min((row.contiguous_prefix for row in self.tasks.values()), default=0)
        return stratified([row.first(rounds) for row in self.tasks.values()])

    @property
    def errors(self) -> int:
        """Episodes without an outcome."""
        return sum(row.errors for row in self.tasks.values())

    @property
    def done(self) -> int:
        """Episodes with a row."""
        return sum(row.successes + row.failures + row.errors for row in self.tasks.values())

    @property
    def total(self) -> int:
        """Episodes planned, less those that enough successes of their task spare."""
        return sum(row.to_run for row in self.tasks.values())


def log_lines(tally: Tally) -> list[str]:
    """Return the last lines of run.log: one line per task, then the overall rate in the form that monitoring parses."""
    lines = []
    for row in tally.rows:
        errors = f", {row.errors} errors" if row.errors else ""
        lines.append(
            f"Task {row.task.task_id} {row.task.name}{_of(row.task, tally)}: {_percent(row.rate)} "
            f"({row.successes}/{row.successes + row.failures}){errors}"
        )
    if len(tally.suites) > 1:
        lines += [f"Suite {suite}: {_counted(suite_rate(rows))}" for suite, rows in tally.suites.items()]
    overall = tally.overall
    if tally.errors:
        lines.append(f"Errors, counted neither as success nor as failure: {tally.errors}")
    if tally.retried:
        lines.append(retry_line(tally.retried, tally.attempt_errors))
    lines.append(f"Overall success rate: {_counted(overall)}")
    return lines


def suite_rate(rows: Iterable[TaskTally]) -> Rate:
    """Return a suite's success rate, its interval stratified by task."""
    return stratified([row.counts for row in rows])


def retry_line(trials: int, kinds: Counter[str]) -> str:
    """Return '3 trials needed a retry; most often because of ActorLostError (2 of 4 failed attempts)'."""
    kind, count = kinds.most_common(1)[0]
    said = f"{trials} {'trial' if trials == 1 else 'trials'} needed a retry; "
    return f"{said}most often because of {kind} ({count} of {sum(kinds.values())} failed attempts)"


def task_table(tally: Tally, title: str | None = None) -> Table:
    """Return a table for a terminal, with one row per task."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    add_columns(table, ("success", "rate", "95% interval", "mean steps", "errors"))
    several = len(tally.suites) > 1
    for row in tally.rows:
        rate = row.rate
        mean = f"{row.steps_to_success / row.successes:.0f}" if row.successes else "-"
        table.add_row(
            str(row.task.task_id),
            one_line(f"{row.task.suite}: " * several + row.task.instruction),
            f"{rate.successes}/{rate.trials}" if rate.trials else f"0 of {row.planned}",
            _percent(rate) if rate.trials else "-",
            interval(rate),
            mean,
            f"[red]{row.errors}[/]" if row.errors else "0",
        )
    return table


def suite_table(tally: Tally) -> Table:
    """Return a table for a terminal with a row per suite and their average."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("suite", no_wrap=True)
    for name in ("success", "rate", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    rates = {suite: suite_rate(rows) for suite, rows in tally.suites.items()} | {"average": tally.overall}
    for suite, rate in rates.items():
        counts = f"{rate.successes}/{rate.trials}"
        table.add_row(suite, counts, _percent(rate) if rate.trials else "-", interval(rate))
    return table


def add_columns(table: Table, numbers: Iterable[str]) -> None:
    """Add columns for task, instruction and `numbers`; a narrow terminal cuts the instruction, never numbers."""
    table.add_column("task", no_wrap=True)
    table.add_column("instruction")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)


def one_line(instruction: str) -> Text:
    """Return an instruction as a cell that is cut, not wrapped."""
    return Text(instruction, no_wrap=True, overflow="ellipsis")


def interval(rate: Rate) -> str:
    """Return text such as '72.2% to 100.0%', or '-' before the first outcome."""
    return f"{rate.low:.1%} to {rate.high:.1%}" if rate.trials else "-"


def _of(task: Task, tally: Tally) -> str:
    return f" ({task.suite})" if len(tally.suites) > 1 else ""


def _counted(rate: Rate) -> str:
    return f"{_percent(rate)} ({rate.successes}/{rate.trials})"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.rate:.2f}%" if rate.trials else "n/a"
