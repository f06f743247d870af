"""Selection of the trials that a configuration names, of the tasks that its suites have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wpray.benchmarks.init_states_file import read_init_states, states_of
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.record import file_sha256
from wpray.results.summary import Tally
from wpray.results.writer import Outcome
from wpray.trials import make_trials, remaining, select_tasks
from wpray.types import Task, TaskKey, Trial, TrialKey

_STATES = "init_states"  # entry of run.json that describes the file


@dataclass(frozen=True, slots=True)
class Selection:
    """Trials of a run."""

    trials: tuple[Trial, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # for run.json

    def tally(self, config: Config, finished: Mapping[TrialKey, Outcome]) -> Tally:
        """Return the counts of what is finished of these trials."""
        planned: dict[TaskKey, tuple[Task, int]] = {}
        for trial in self.trials:
            planned[trial.task.key] = (trial.task, planned.get(trial.task.key, (trial.task, 0))[1] + 1)
        tally = Tally.planned(planned.values(), config.trial_start, config.stop_after_successes)
        keys = {trial.key for trial in self.trials}
        for key, outcome in finished.items():
            if key in keys:
                tally.add(key, outcome.status, outcome.num_steps, outcome.retried)
        return tally

    def left(self, tally: Tally, finished: Collection[TrialKey]) -> tuple[Trial, ...]:
        """Return the trials that still have to run, where `tally` counts the `finished` ones."""
        wanted = {key for key, task in tally.tasks.items() if not task.enough}
        return tuple(trial for trial in remaining(self.trials, finished) if trial.task.key in wanted)

    def check_same_states(self, info: Mapping[str, Any] | None, place: str) -> None:
        """Raise BadInputError if the run that run.json describes, in `place`, began with other initial states."""
        theirs, ours = (info or {}).get(_STATES), self.facts.get(_STATES)
        if isinstance(theirs, Mapping) and ours is not None and theirs.get("sha256") != ours["sha256"]:
            raise BadInputError(
                f"init_states_file: {ours['path']} has changed since the run in {place} began; "
                "choose another output_dir"
            )


def select(config: Config, listed: Sequence[Task]) -> Selection:
    """Return the trials of `config` among the tasks that its suites have.

    Raises BadInputError for tasks or trials that do not exist, and for a damaged or incomplete init_states_file.
    """
    by_suite = [[task for task in listed if task.suite == suite] for suite in config.suites]
    tasks = [task for its in by_suite for task in _selected(config, its)]
    first, end = config.trial_start, config.num_trials_per_task
    if config.init_states_file is None:
        return Selection(make_trials(tasks, end, config.seed, first))
    path = Path(config.init_states_file)
    if not config.load_benchmark().takes_own_states:
        raise BadInputError(f"init_states_file: {config.task_suite} takes no initial states from a file; leave it out")
    states = read_init_states(path)
    own = [states_of(task, states, path) for task in tasks]
    trials = [
        replace(trial, own_state=tuple(rows[trial.init_state].tolist()))
        for task, rows in zip(tasks, own, strict=True)
        for trial in make_trials([replace(task, num_trials=len(rows))], min(end, len(rows)), config.seed, first)
    ]
    return Selection(tuple(trials), {_STATES: {"path": str(path), "sha256": file_sha256(path)}})


def _selected(config: Config, listed: Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks of one suite that are evaluated."""
    ids = [task.task_id for task in listed]
    return select_tasks(listed, config.task_ids(listed[0].suite, ids) if listed else None)
