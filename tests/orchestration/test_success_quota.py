"""`stop_after_successes`: whatever runs at once, the trials that run are those of a serial run."""

from __future__ import annotations

import random

import pytest

from wpray.benchmarks.fake.environment import fake_tasks
from wpray.orchestration.scheduler import Assignment, Scheduler, SuccessQuota
from wpray.results.summary import Tally
from wpray.types import Trial, TrialKey

TASKS, TRIALS = fake_tasks()[:4], 12


def _serial(outcomes: dict[tuple[int, int], bool], wanted: int) -> set[tuple[int, int]]:
    """One trial after the other, as the description says it."""
    ran: set[tuple[int, int]] = set()
    for task in range(len(TASKS)):
        successes = 0
        for trial in range(TRIALS):
            if successes == wanted:
                break
            ran.add((task, trial))
            successes += outcomes[task, trial]
    return ran


@pytest.mark.parametrize("seed", range(60))
def test_any_number_of_workers_runs_the_trials_of_a_serial_run(seed: int) -> None:
    rng = random.Random(seed)
    wanted, workers = rng.randint(1, 5), [f"env-{number}" for number in range(rng.randint(1, 20))]
    rate = rng.choice([0.1, 0.5, 0.9])
    outcomes = {(task, trial): rng.random() < rate for task in range(len(TASKS)) for trial in range(TRIALS)}
    trials = [Trial(task, trial, 0) for task in TASKS for trial in range(TRIALS)]
    ran: set[tuple[int, int]] = set()
    solved = dict.fromkeys(((task.suite, task.task_id) for task in TASKS), 0)
    while True:  # again after an interruption, as long as something is left
        left = [trial for trial in trials if trial.key[1:] not in ran]
        scheduler = Scheduler(left, 3, quota=SuccessQuota(wanted, solved))
        if scheduler.finished:
            break
        for trial in _some(scheduler, workers, outcomes, rng):
            assert trial.key[1:] not in ran
            ran.add((trial.task.task_id, trial.init_state))
            solved[trial.task.key] += outcomes[trial.task.task_id, trial.init_state]
    assert ran == _serial(outcomes, wanted)
    assert max(solved.values()) <= wanted


def _some(
    scheduler: Scheduler, workers: list[str], outcomes: dict[tuple[int, int], bool], rng: random.Random
) -> list[Trial]:
    """The trials that end before the run does, or is interrupted; some attempts fail and are made again."""
    ended: list[Trial] = []
    interrupted_after = rng.choice([3, 10_000])
    while not scheduler.finished and len(ended) < interrupted_after:
        rng.shuffle(workers)
        for worker in workers:
            scheduler.next_for(worker)
        assignment: Assignment = rng.choice(list(scheduler.running.values()))
        if rng.random() < 0.1 and assignment.attempt < 3:
            assert scheduler.failed(assignment)
            continue
        assert scheduler.done(assignment, outcomes[assignment.trial.task.task_id, assignment.trial.init_state])
        ended.append(assignment.trial)
    return ended


def test_a_task_with_enough_successes_is_complete() -> None:
    tally = Tally.planned([(TASKS[0], 10), (TASKS[1], 10)], start=5, wanted=2)
    for trial, status in ((5, "success"), (6, "failure"), (7, "success")):
        tally.add(TrialKey("fake", 0, trial), status, 30)
    assert (tally.done, tally.total) == (3, 13)
    assert tally.balanced_rate.trials == 0
    tally.add(TrialKey("fake", 1, 5), "failure", 30)
    assert (tally.balanced_rate.successes, tally.balanced_rate.trials) == (1, 2)
