"""Trials of a run, and the random numbers that their keys determine."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from wpray.errors import BadInputError
from wpray.types import Task, Trial, TrialKey


def select_tasks(tasks: Sequence[Task], wanted: Sequence[int] | None) -> tuple[Task, ...]:
    """Return the tasks whose ids are `wanted` (all if None), in id order.

    Raises BadInputError for an id out of range, and for a suite without tasks: a run of nothing is no result.
    """
    if not tasks:
        raise BadInputError("task_suite: the suite has no tasks, so there is nothing to run; choose another")
    if wanted is None:
        return tuple(tasks)
    by_id = {task.task_id: task for task in tasks}
    unknown = sorted(set(wanted) - set(by_id))
    if unknown:
        suite, last = tasks[0].suite, max(by_id)
        raise BadInputError(f"tasks: {suite} has no task {unknown[0]}; its tasks are 0 to {last}")
    return tuple(by_id[task_id] for task_id in sorted(set(wanted)))


def make_trials(tasks: Sequence[Task], num_trials: int, seed: int, first: int = 0) -> tuple[Trial, ...]:
    """Return the trials of every task, tasks in order.

    Raises BadInputError if a task has fewer initial states than trials.
    """
    if first >= num_trials:
        raise BadInputError(
            f"trial_start: {first} leaves no trial of num_trials_per_task {num_trials}; give less than {num_trials}"
        )
    for task in tasks:
        if num_trials > task.num_trials:
            raise BadInputError(
                f"num_trials_per_task: {num_trials} trials asked for, but task {task.task_id} ({task.name}) of "
                f"{task.suite} has {task.num_trials} initial states; use at most {task.num_trials}"
            )
    return tuple(Trial(task, trial, seed) for task in tasks for trial in range(first, num_trials))


def remaining(trials: Sequence[Trial], recorded: Collection[TrialKey]) -> tuple[Trial, ...]:
    """Return those of `trials` whose key is not in `recorded`."""
    return tuple(trial for trial in trials if trial.key not in recorded)


def reset_seed(trial: Trial) -> int:
    """Return the 32-bit seed of `trial`'s reset, the same on every machine and Python."""
    return int.from_bytes(_digest(_key_text(trial))[:4], "little")


def trial_generator(trial: Trial, purpose: str, index: int) -> np.random.Generator:
    """Return the generator of the `index`-th draws for `purpose` in `trial`."""
    return seeded_generator(f"{_key_text(trial)}/{purpose}/{index}")


def seeded_generator(text: str) -> np.random.Generator:
    """Return the generator that `text` alone determines: Philox, with a hash of `text` as its key.

    Philox is counter-based, so the processes of all machines draw the same numbers.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(text)[:16], "little")))


def _key_text(trial: Trial) -> str:
    return f"{trial.seed}/{trial.task.suite}/{trial.task.task_id}/{trial.init_state}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
