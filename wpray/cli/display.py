"""Display of a run: a live table on a terminal, plain lines elsewhere, and the same lines in run.log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally, interval, log_lines, suite_table, task_table
from wpray.results.writer import RunFolder
from wpray.types import Trial

_LOG = logging.getLogger("wpray")
_BEFORE = "lines_before"  # attribute of a record: lines for run.log only


@contextlib.contextmanager
def logging_to(path: Path, console: Console) -> Iterator[None]:
    """Send the project's log lines to run.log, and warnings (all lines, if not a terminal) to the console."""
    file = _LogFile(path, encoding="utf-8")
    file.setFormatter(_Lines())
    screen = _ConsoleHandler(console)
    screen.setLevel(logging.WARNING if console.is_terminal else logging.INFO)
    before = _LOG.level, _LOG.propagate
    _LOG.setLevel(logging.DEBUG)
    _LOG.propagate = False
    for handler in (file, screen):
        _LOG.addHandler(handler)
    try:
        yield
    finally:
        for handler in (file, screen):
            _LOG.removeHandler(handler)
            handler.close()
        _LOG.setLevel(before[0])
        _LOG.propagate = before[1]


class RunConsole(Console):
    """Console of a run."""

    def on_broken_pipe(self) -> None:
        """Continue silently when the reader has closed the pipe, as `| head` does; rich would end the process."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class RunDisplay:
    """Live display of a run's progress; a context manager around the driver's loop."""

    def __init__(self, console: Console, tally: Tally, num_policies: int) -> None:
        self._console, self._tally, self._num_policies = console, tally, num_policies
        self._began = time.monotonic()
        self._first = tally.done
        self._env_busy_s, self._policy_busy_s, self._num_workers = 0.0, 0.0, 0
        self._several_suites = len(tally.suites) > 1
        self._is_live = console.is_terminal  # read once, because the property reads the environment
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._bar = self._progress.add_task("episodes", total=tally.total, completed=tally.done)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> RunDisplay:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Log an episode's line, its replans before it."""
        self._env_busy_s += episode.utilisation[0]
        if self._is_live:
            self._progress.update(self._bar, completed=self._tally.done, total=self._tally.total)
        suite = f"{trial.task.suite} " if self._several_suites else ""
        replans = [f"{suite}{trial.label} {line}" for line in episode.replans]
        _LOG.info(suite + episode_line(trial, episode), extra={_BEFORE: replans})

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """Note the seconds that the policies have computed, and the number of env actors."""
        self._policy_busy_s, self._num_workers = policy_busy_s, num_workers

    def _render(self) -> RenderableType:
        return Group(self._progress, Text(self._facts()), _tables(self._tally))

    def _facts(self) -> str:
        tally, elapsed = self._tally, max(time.monotonic() - self._began, 1e-9)
        overall = tally.overall
        rate = f"{overall.rate:.1%} ({interval(overall)})" if overall.trials else "-"
        speed = 60 * (tally.done - self._first) / elapsed
        env_share = min(1.0, self._env_busy_s / (elapsed * max(1, self._num_workers)))
        policy_share = min(1.0, self._policy_busy_s / (elapsed * self._num_policies))
        return (
            f"success {rate}   {speed:.1f} episodes/min   {self._num_workers} envs busy {env_share:.0%}   "
            f"policy busy {policy_share:.0%}   errors {tally.errors}"
        )


def _tables(tally: Tally) -> RenderableType:
    """Return the rates by task; of several suites by suite, because there are too many tasks for a screen."""
    return suite_table(tally) if len(tally.suites) > 1 else task_table(tally)


def episode_line(trial: Trial, episode: EncodedEpisode) -> str:
    """Return `Task 3 pick_up_the_bbq_sauce... trial 2: SUCCESS in 128 steps (4.1 s)`."""
    label = trial.label
    if episode.error is not None:
        return f"{label}: ERROR {episode.error}"
    outcome = "SUCCESS" if episode.status == "success" else "FAIL"
    return f"{label}: {outcome} in {episode.num_steps} steps ({episode.wall_s:.1f} s)"


def log_summary(tally: Tally) -> None:
    """Log the plain lines that close run.log."""
    for line in log_lines(tally):
        _LOG.log(logging.INFO, line)


def print_summary(console: Console, tally: Tally, folder: RunFolder, report: Path | None) -> None:
    """Print the closing table and rate, where the files are and how to query them."""
    overall = tally.overall
    if console.is_terminal:
        console.print(_tables(tally))
        console.print()
    if overall.trials:
        console.print(
            f"[bold]Success rate {overall.rate:.1%}[/] ({overall.successes}/{overall.trials}), "
            f"95% interval {interval(overall)}" + (f", {tally.errors} errors apart" if tally.errors else ""),
            highlight=False,
        )
    if report is not None:
        link = f"[link={report.resolve().as_uri()}]{escape(str(report))}[/link]"
        console.print(f"Report with charts and videos: {link}", highlight=False, soft_wrap=True)
    table = folder.path / "episodes.parquet"
    on_their_way = "" if folder.location == str(folder.path) else f", which go to {folder.location} now"
    console.print(f"Results in {folder.path}{on_their_way}", highlight=False, markup=False, soft_wrap=True)
    query = f"SELECT task_name, avg(success::int) AS rate FROM '{table}' GROUP BY task_name ORDER BY rate"
    console.print(f'Query them: duckdb -c "{query}"', highlight=False, soft_wrap=True, markup=False)


class _Lines(logging.Formatter):
    """Formatter of a record as a line with its time, after the lines that belong to the same episode."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        before: list[str] = getattr(record, _BEFORE, [])
        return "".join(f"{record.asctime} {line}\n" for line in before) + super().formatMessage(record)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore a full disk: the line is on the console, and the run continues without a traceback."""


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._is_terminal = console, console.is_terminal

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the run; run.log has the line
            if self._is_terminal:
                self._console.print(record.getMessage(), style=style, highlight=False, markup=False, soft_wrap=True)
            else:  # not a terminal: a line for each episode
                self._console.file.write(record.getMessage() + "\n")
                self._console.file.flush()
