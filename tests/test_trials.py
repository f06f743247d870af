from __future__ import annotations

import pytest

from wpray.errors import BadInputError
from wpray.trials import make_trials, remaining, reset_seed, seeded_generator, select_tasks, trial_generator
from wpray.types import Task, Trial, TrialKey

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


def test_what_a_key_determines_never_changes() -> None:
    """Pinned: a change of these numbers changes every recorded outcome."""
    trial = Trial(Task("libero_object", 3, "name", "do it", 50, 280), 7, 11)
    assert reset_seed(trial) == 1560668318
    drawn = trial_generator(trial, "plan", 2).normal(size=3)
    assert drawn.tolist() == [-0.3732793180493313, -0.7389282597843262, 0.812427782274205]
    drawn = seeded_generator('["wpray planner noise 1", 0, "libero_object", 3, 7, 1, 9]').standard_exponential(3)
    assert drawn.tolist() == [0.9886030813493918, 0.2694999867598915, 1.9690727450125]
