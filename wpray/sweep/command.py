"""A sweep from its grid to its tables and report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from wpray.benchmarks.factory import group_name
from wpray.cluster.setup import cluster_tasks
from wpray.config import Config
from wpray.doctor.checks import policy_files
from wpray.errors import BadInputError, RunFailedError, RunStoppedError
from wpray.policies.factory import with_policy_args
from wpray.policies.fit import fitting_spec
from wpray.results.atomic import write_atomic
from wpray.results.summary import interval
from wpray.run.callbacks import EpisodeDone
from wpray.run.evaluation import CallerParts, evaluate_with
from wpray.run.machine import check_machine
from wpray.run.plan import counted, work_of
from wpray.run.pools import Pools
from wpray.run.selection import select
from wpray.sweep.course import Course, Job
from wpray.sweep.folder import SweepFolder, choose_folder
from wpray.sweep.grid import Grid
from wpray.sweep.outcomes import Evaluated, compared, evaluated, held_out
from wpray.sweep.page import build
from wpray.sweep.race import Race, race_rules
from wpray.sweep.tables import write_tables
from wpray.sweep.watch import Watch

_LOG = logging.getLogger(__name__)
_REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class How:
    """Options of a sweep that are no settings of its runs."""

    watch: float | None = None  # minutes
    race: int | None = None  # trials a task in the first round
    held_out: int | None = None


def sweep(grid: Grid, how: How) -> int:
    """Evaluate every checkpoint of the grid; return 0 if all episodes of all runs have an outcome, else 1.

    Raises BadInputError before anything starts, RunStoppedError when the sweep had to stop.
    """
    folder, course = _prepared(grid, how)
    if course.jobs:
        check_trials(course.jobs[0].config)
    with folder.opened(), Pools(for_many_runs=True) as pools:
        return _Sweep(grid, folder, pools, course).run()


def show_plan(grid: Grid, how: How) -> int:
    """Print the checkpoints and how many of their episodes are finished; return 0.

    Raises BadInputError as the sweep itself would.
    """
    folder, course = _prepared(grid, how)
    table, left = Table(box=None, pad_edge=False, header_style="bold"), 0
    for name in ("checkpoint", "episodes", "finished"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right")
    due = {job.name: job for job in course.left(())}  # of a race those of its round
    for job in [due.get(job.name, job) for job in course.jobs]:
        work = work_of(job.config)
        left += work.planned - work.finished if job.name in due else 0
        table.add_row(job.said, str(work.planned), str(work.finished))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for rules in (facts["rules"] for facts in course.facts.values()):
        console.print(f"{rules} The episodes are those of the present round.")
    console.print(f"{counted(len(course.jobs), 'checkpoint')}, {counted(left, 'episode')} to run, into {folder.path}")
    return 0


def _prepared(grid: Grid, how: How) -> tuple[SweepFolder, Course]:
    """Return the folder and the course, once all that is there is checked. Raises BadInputError."""
    config = grid.template
    _check(grid, config, how)
    rules = None
    if how.race is not None:
        if grid.asks_for_videos:
            raise BadInputError("--race: renders no videos; leave video.mode out, and use python -m wpray.video RUN")
        rules = race_rules(config, how.race, how.held_out)
    folder = choose_folder(grid, config, {} if rules is None else {"race": asdict(rules), "tasks": config.tasks})
    if how.watch is not None:
        return folder, Watch(grid, folder, 60 * how.watch, lambda checkpoint: check_files(checkpoint.config))
    checkpoints = grid.checkpoints()
    for checkpoint in checkpoints:
        check_files(checkpoint.config)
    if rules is not None:
        return folder, Race(grid, folder, checkpoints, rules)
    return folder, Course(grid, folder, checkpoints)


def check_files(config: Config) -> None:
    """Raise BadInputError if the policy of `config` is unknown or its files cannot be what is evaluated."""
    fitting_spec(with_policy_args(config))
    for result in policy_files(config):
        if result.status == "fail":
            raise BadInputError(result.text)


def check_trials(config: Config) -> None:
    """Raise BadInputError if this machine cannot run `config`, or its suites lack the trials."""
    check_machine(config)
    if config.ray.address is None:  # else a node lists them, because this machine may have no simulator
        select(config, cluster_tasks(config))


def _check(grid: Grid, config: Config, how: How) -> None:
    """Raise BadInputError for settings that a sweep cannot have, and for patterns that match nothing."""
    if config.ray.submit is not None:
        raise BadInputError("ray.submit: a sweep runs its driver here; use ray.address to compute on a cluster")
    if config.video_out_path is not None:
        raise BadInputError("video_out_path: every run of a sweep has its own videos; leave it out")
    if how.race is not None and how.watch is not None:
        raise BadInputError("--watch: a race needs all checkpoints when it begins; leave --race or --watch out")
    if how.held_out is not None and how.race is None:
        raise BadInputError("--held_out: is of a race; give --race, too, or leave it out")
    unmatched = grid.unmatched() if how.watch is None else None
    if unmatched is not None:
        raise BadInputError(f"{unmatched}: {' '.join(grid.patterns[unmatched])[:200]} matches nothing; quote a pattern")


@dataclass(slots=True)
class _Sweep:
    """A sweep under way."""

    grid: Grid
    folder: SweepFolder
    pools: Pools
    course: Course
    _reasons: dict[str, str] = field(default_factory=dict)  # why a checkpoint has no whole run, by name
    _done: set[tuple[str, int]] = field(default_factory=set)  # runs, with the end of their trials

    def run(self) -> int:
        """Evaluate all checkpoints, render their videos, and write tables and report even after an error.

        The sweep's file says that it runs from before the first run until after the last video, because only a sweep
        that has not finished is continued by the next command.
        """
        state = "stopped"
        try:
            self._write("running")
            while (left := self.course.left(self._reasons)) or self._wait():
                if left:
                    self._evaluate(left[0])
            if self.grid.asks_for_videos:
                self._render_videos()
            state = "finished" if not self._reasons else "stopped"
        finally:
            found = self._write(state)
        self._show(found)
        return 1 if self._reasons else 0

    def _evaluate(self, job: Job) -> None:
        key = (job.name, job.config.num_trials_per_task)
        if key in self._done:
            self._reasons[job.name] = "not all of its trials have an outcome"
            return
        self._done.add(key)
        name, names = job.name, [known.checkpoint.name for known in self.course.jobs]
        trials = f"trials {job.config.trial_start} to {job.config.num_trials_per_task - 1}"
        number = names.index(job.checkpoint.name) + 1
        print(f"Checkpoint {number} of {len(names)}, {trials}: {job.said}", flush=True)
        try:
            parts = CallerParts(on_episode=_Once(lambda: self._load_ahead(job)))
            if evaluate_with(job.config, parts, self.pools).exit_code:
                self._reasons[name] = "some episodes ended in an error"
        except (BadInputError, RunFailedError) as error:
            self._reasons[name] = str(error)
            print(f"Left out: {error}", flush=True)
        except RunStoppedError:
            self._reasons[name] = "stopped"
            raise
        self._write("running")

    def _wait(self) -> bool:
        """Wait for checkpoints that are still to come; note those that have not become complete."""
        if self.course.wait(self._reasons):
            return True
        self._reasons |= self.course.incomplete
        return False

    def _load_ahead(self, current: Job) -> None:
        """Load the policy of the run after the `current` one, once this one's works."""
        following = next((job for job in self.course.left(self._reasons) if job.place != current.place), None)
        if following is not None:
            self.pools.load_ahead(following.config, fitting_spec(following.config))

    def _render_videos(self) -> None:
        """Render the videos that are asked for, once no env actor holds a core."""
        self.pools.end_env_actors()
        for job in self.course.jobs:
            if job.name not in self._reasons:
                config = job.config.model_copy(update={"video": job.checkpoint.config.video})
                evaluate_with(config, CallerParts(), self.pools)

    def _write(self, state: str) -> list[Evaluated]:
        jobs = self.course.jobs
        found = evaluated([job.checkpoint for job in jobs], [job.place for job in jobs])
        comparisons = compared(found)
        winner = self.course.held_out
        found += [] if winner is None else held_out(winner.checkpoint, winner.place, found)
        said = {"checkpoints": [self._said(job) for job in jobs], **self.course.facts}
        write_tables(self.folder.path, found, comparisons)
        page = build(self._title, state, found, comparisons, said)
        write_atomic(self.folder.path / _REPORT, page.encode("utf-8", "replace"))
        self.folder.save(state, said)
        return found

    def _said(self, job: Job) -> dict[str, Any]:
        name = job.name
        return {"name": name, "paths": dict(job.checkpoint.paths), "reason": self._reasons.get(name)}

    @property
    def _title(self) -> str:
        config = self.grid.template
        return f"{config.policy} on {group_name(config.suites, config.benchmark)}: {len(self.course.jobs)} checkpoints"

    def _show(self, found: Sequence[Evaluated]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("checkpoint")
        for name in ("step", "success", "rate", "95% interval", "errors"):
            table.add_column(name, justify="right")
        for one in found:
            rate = one.rate
            figure = f"{rate.rate:.1%}" if rate.trials else "-"
            step = "-" if one.step is None else str(one.step)
            label = f"{one.label}, held-out trials" if one.held_out else one.label
            table.add_row(label, step, f"{rate.successes}/{rate.trials}", figure, interval(rate), str(one.errors))
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        for name, reason in self._reasons.items():
            console.print(f"{name}: {reason}", markup=False)
        console.print(f"Report: {self.folder.path / _REPORT}", markup=False)


class _Once:
    """Function for every episode that does something at the first one."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self, done: EpisodeDone) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()
