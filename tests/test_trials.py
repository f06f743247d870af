from __future__ import annotations

import pytest

from wpray.errors import BadInputError
from wpray.trials import make_trials, remaining, select_tasks
from wpray.types import Task, TrialKey

TASKS = tuple(Task("suite", i, f"task_{i}", "do", num_trials=50, max_steps=100) for i in range(10))


def test_tasks_are_chosen_by_id_in_order_once() -> None:
    assert [task.task_id for task in select_tasks(TASKS, [7, 0, 7])] == [0, 7]
    assert select_tasks(TASKS, None) == TASKS


def test_a_task_out_of_range_names_the_range() -> None:
    with pytest.raises(BadInputError, match="no task 10; its tasks are 0 to 9"):
        select_tasks(TASKS, [10])
    for wanted in (None, [0]):
        with pytest.raises(BadInputError, match="no tasks"):
            select_tasks((), wanted)


def test_trials_are_every_pair_and_recorded_ones_are_left_out() -> None:
    trials = make_trials(TASKS[:2], 3, seed=5)
    assert [trial.key for trial in trials] == [("suite", t, k) for t in (0, 1) for k in (0, 1, 2)]
    assert [trial.key for trial in remaining(trials, {TrialKey("suite", 0, k) for k in range(3)})] == [
        ("suite", 1, k) for k in range(3)
    ]


def test_more_trials_than_initial_states_is_refused() -> None:
    with pytest.raises(BadInputError, match="use at most 50"):
        make_trials(TASKS, 51, seed=0)
