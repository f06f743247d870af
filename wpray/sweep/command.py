"""A sweep from its grid to its tables and report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from wpray.sweep.course import Course, Job, job_of
from wpray.sweep.folder import SweepFolder, choose_folder
from wpray.sweep.grid import Grid
from wpray.sweep.outcomes import Evaluated, compared, evaluated
from wpray.sweep.page import build
from wpray.sweep.tables import write_tables

_LOG = logging.getLogger(__name__)
_REPORT = "report.html"


def sweep(grid: Grid) -> int:
    """Evaluate every checkpoint of the grid; return 0 if all episodes of all runs have an outcome, else 1.

    Raises BadInputError before anything starts, RunStoppedError when the sweep had to stop.
    """
    config = grid.template
    _check(grid, config)
    folder = choose_folder(grid, config, {})
    checkpoints = grid.checkpoints({})
    for checkpoint in checkpoints:
        check_files(checkpoint.config)
    check_trials(checkpoints[0].config)
    with folder.opened(), Pools(for_many_runs=True) as pools:
        return _Sweep(grid, folder, pools, Course(checkpoints, folder)).run()


def show_plan(grid: Grid) -> int:
    """Print the checkpoints and how many of their episodes are finished; return 0.

    Raises BadInputError as the sweep itself would.
    """
    config = grid.template
    _check(grid, config)
    folder = choose_folder(grid, config, {})
    table, left = Table(box=None, pad_edge=False, header_style="bold"), 0
    for name in ("checkpoint", "episodes", "finished"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right")
    checkpoints = grid.checkpoints({})
    for checkpoint in checkpoints:
        check_files(checkpoint.config)
        work = work_of(job_of(checkpoint, folder).config)
        left += work.planned - work.finished
        table.add_row(" + ".join(checkpoint.paths.values()), str(work.planned), str(work.finished))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"{counted(len(checkpoints), 'checkpoint')}, {counted(left, 'episode')} to run, into {folder.path}")
    return 0


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


def _check(grid: Grid, config: Config) -> None:
    """Raise BadInputError for settings that a sweep cannot have, and for patterns that match nothing."""
    if config.ray.submit is not None:
        raise BadInputError("ray.submit: a sweep runs its driver here; use ray.address to compute on a cluster")
    if config.video_out_path is not None:
        raise BadInputError("video_out_path: every run of a sweep has its own videos; leave it out")
    unmatched = grid.unmatched()
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

    def run(self) -> int:
        """Evaluate all checkpoints, and write tables and report even after an error."""
        state = "stopped"
        try:
            while left := self.course.left(self._reasons):
                self._evaluate(left[0])
            state = "finished" if not self._reasons else "stopped"
        finally:
            found = self._write(state)
        if (self.grid.shared.get("video") or {}).get("mode"):
            self._render_videos()
        self._show(found)
        return 1 if self._reasons else 0

    def _evaluate(self, job: Job) -> None:
        name, jobs = job.checkpoint.name, self.course.jobs
        print(f"Checkpoint {jobs.index(job) + 1} of {len(jobs)}: {job.said}", flush=True)
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

    def _load_ahead(self, current: Job) -> None:
        """Load the policy of the run after the `current` one, once this one's works."""
        following = next((job for job in self.course.left(self._reasons) if job.place != current.place), None)
        if following is not None:
            self.pools.load_ahead(following.config, fitting_spec(following.config))

    def _render_videos(self) -> None:
        """Render the videos that are asked for, once no env actor holds a core."""
        self.pools.end_env_actors()
        for job in self.course.jobs:
            if job.checkpoint.name not in self._reasons:
                config = job.config.model_copy(update={"video": job.checkpoint.config.video})
                evaluate_with(config, CallerParts(), self.pools)

    def _write(self, state: str) -> list[Evaluated]:
        jobs = self.course.jobs
        found = evaluated([job.checkpoint for job in jobs], [job.place for job in jobs])
        comparisons = compared(found)
        said = {"checkpoints": [self._said(job) for job in jobs]}
        write_tables(self.folder.path, found, comparisons)
        page = build(self._title, state, found, comparisons, said)
        write_atomic(self.folder.path / _REPORT, page.encode("utf-8", "replace"))
        self.folder.save(state, said)
        return found

    def _said(self, job: Job) -> dict[str, Any]:
        name = job.checkpoint.name
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
            table.add_row(one.label, step, f"{rate.successes}/{rate.trials}", figure, interval(rate), str(one.errors))
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
