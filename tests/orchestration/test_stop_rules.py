"""Rules of an early stop, and how often the sequential test errs."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import pytest

from wpray.config.groups import StopWhenConfig
from wpray.orchestration.scheduler import Scheduler
from wpray.orchestration.stop_rules import ErrorBook, PolicyErrors, decided, round_size, too_many_errors
from wpray.results.statistics import Rate, wilson
from wpray.results.summary import Tally
from wpray.types import Task, Trial, TrialKey


@pytest.mark.parametrize(
    ("errors", "finished", "stops"),
    [(0, 0, False), (2, 2, False), (3, 3, True), (3, 60, False), (4, 60, True), (5, 100, False), (6, 100, True)],
)
def test_a_run_stops_at_three_errors_and_more_than_their_share(errors: int, finished: int, stops: bool) -> None:
    assert too_many_errors(errors, finished, max_share=0.05) is stops


def test_a_share_of_one_never_stops_a_run() -> None:
    assert not too_many_errors(100, 100, max_share=1.0)


def test_the_reason_names_the_most_frequent_error() -> None:
    book = ErrorBook(max_share=0.05)
    assert book.reason_to_stop(10) is None
    for summary in ("KeyError: a", "OSError: b", "OSError: b"):
        book.add_row(summary)
    assert book.reason_to_stop(10) == "3 of 10 episodes ended in an error; most often (2): OSError: b"
    assert book.reason_to_stop(1000) is None


def test_a_policy_error_repeats_when_a_fresh_process_fails_on_the_same_trial() -> None:
    book = PolicyErrors()
    one, other = TrialKey("fake", 0, 0), TrialKey("fake", 0, 1)
    assert not book.repeat(one, "A", "first incarnation")
    assert not book.repeat(one, "A", "first incarnation")
    assert not book.repeat(other, "A", "second incarnation")
    assert not book.repeat(one, "B", "second incarnation")
    assert book.repeat(one, "A", "second incarnation")


def test_without_a_rule_the_outcomes_are_not_even_summed_up() -> None:
    def never() -> Rate:
        raise AssertionError("asked")

    assert decided(never, StopWhenConfig()) is None


def test_a_narrow_interval_is_enough() -> None:
    rule = StopWhenConfig(half_width=0.1)
    assert decided(lambda: wilson(0, 0), rule) is None
    assert decided(lambda: wilson(8, 10), rule) is None
    assert "half-width is 4.9%" in (decided(lambda: wilson(200, 250), rule) or "")


def test_the_sequential_test_tells_better_worse_and_the_same_apart() -> None:
    rule = StopWhenConfig(reference_rate=0.8, difference=0.1)
    assert decided(lambda: wilson(4, 5), rule) is None
    assert "better than the reference rate 80.0%" in (decided(lambda: wilson(100, 100), rule) or "")
    assert "worse than the reference rate 80.0%" in (decided(lambda: wilson(10, 50), rule) or "")
    assert "within 10.0%" in (decided(lambda: wilson(800, 1000), rule) or "")


@pytest.mark.parametrize("reference", [0.0005, 0.02, 0.97, 0.9995])
def test_a_reference_near_an_end_still_has_two_sides(reference: float) -> None:
    rule = StopWhenConfig(reference_rate=reference, difference=0.2)
    assert "worse" in (decided(lambda: wilson(0, 100_000), rule) or "")
    assert "better" in (decided(lambda: wilson(100_000, 100_000), rule) or "")


@pytest.mark.parametrize("reference", [0.5, 0.9])
def test_the_sequential_test_errs_as_rarely_as_it_says(reference: float) -> None:
    rule, runs = StopWhenConfig(reference_rate=reference, difference=0.1, alpha=0.1, beta=0.1), 400
    same = Counter(_verdict(reference, rule, seed) for seed in range(runs))
    lower = Counter(_verdict(reference - 0.1, rule, seed) for seed in range(runs))
    three_sigma = 3 * np.sqrt(0.1 * 0.9 / runs)
    assert (same["better"] + same["worse"]) / runs <= 0.1 + three_sigma
    assert 1 - lower["worse"] / runs <= 0.1 + three_sigma


def _verdict(true_rate: float, rule: StopWhenConfig, seed: int) -> str:
    outcomes = np.random.default_rng(seed).random(20_000) < true_rate
    for trials, successes in enumerate(np.cumsum(outcomes).tolist(), start=1):
        reason = decided(lambda s=successes, n=trials: Rate(s, n, s / n, 0.0, 1.0), rule)
        if reason is not None:
            return next(word for word in ("better", "worse", "within") if f"is {word}" in reason)
    raise AssertionError("no decision")


EASY_AND_HARD = np.repeat([1.0, 0.6], 5)  # 0.8 on average
TASKS = [Task("fake", index, f"task {index}", "", 50, 280) for index in range(10)]


@pytest.mark.parametrize("workers", [1, 7])
def test_a_run_of_unequal_tasks_whose_successes_end_first_errs_as_rarely(workers: int) -> None:
    """A rate over what has finished first would reject the reference rate wrongly in most of these runs."""
    rule, runs = StopWhenConfig(reference_rate=0.8, difference=0.1), 120
    verdicts = [_run_until_decided(EASY_AND_HARD, rule, workers, seed)[0] for seed in range(runs)]
    wrong = sum("better" in verdict or "worse" in verdict for verdict in verdicts)
    assert wrong / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    worse = [_run_until_decided(EASY_AND_HARD - 0.1, rule, workers, seed) for seed in range(40)]
    assert sum("worse" in verdict for verdict, _ in worse) >= 34  # 95%, less three sigma
    assert np.mean([tally.done for _, tally in worse]) < 350  # of 500


@pytest.mark.parametrize("rates", [EASY_AND_HARD, np.array([1, 1, 1, 1, 0.99, 0.99, 0.95, 0.9, 0.8, 0.5])])
def test_an_interval_at_which_a_run_stopped_covers_what_it_should(rates: np.ndarray) -> None:
    """With more trials of easy tasks than of hard ones, the rate would be biased."""
    rule, truth = StopWhenConfig(half_width=0.06), rates.mean()
    stopped = [_run_until_decided(rates, rule, 7, seed) for seed in range(200)]
    found = [tally.overall for _, tally in stopped]
    assert np.mean([rate.low <= truth <= rate.high for rate in found]) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 200)
    assert all(reason and tally.done < 300 for reason, tally in stopped)
    assert all(len({len(row.statuses) for row in tally.rows}) == 1 for _, tally in stopped)


def _run_until_decided(rates: np.ndarray, rule: StopWhenConfig, workers: int, seed: int) -> tuple[str, Tally]:
    """Run as the driver does: trials end after their steps, and those that run at a decision finish."""
    hits = np.random.default_rng(seed).random((len(TASKS), 50)) < rates[:, None]
    scheduler = Scheduler([Trial(task, k, 0) for task in TASKS for k in range(50)], 1, round_size(rule))
    tally, busy, now, reason = Tally.planned((task, 50) for task in TASKS), [], 0, None
    idle = [f"env-{number}" for number in range(workers)]
    while not scheduler.finished:
        while idle and (assignment := scheduler.next_for(idle[-1])) is not None:
            hit = bool(hits[assignment.trial.task.task_id, assignment.trial.init_state])
            heapq.heappush(busy, (now + (115 if hit else 290), idle.pop(), hit, assignment))
        now, worker, hit, assignment = heapq.heappop(busy)
        scheduler.done(assignment)
        idle.append(worker)
        tally.add(assignment.trial.key, "success" if hit else "failure", 115 if hit else 290)
        reason = reason or decided(lambda: tally.balanced_rate, rule)
        if reason is not None:
            scheduler.even_out()
    return reason or "", tally


def test_only_trials_that_all_tasks_have_run_count_for_a_decision() -> None:
    tally = Tally.planned((task, 3) for task in TASKS[:2])
    for trial in (0, 1, 2):
        tally.add(TrialKey("fake", 0, trial), "success", 100)
    assert tally.balanced_rate.trials == 0 and tally.overall.trials == 3
    tally.add(TrialKey("fake", 1, 1), "failure", 290)
    assert tally.balanced_rate.trials == 0  # its trial 0 still runs
    tally.add(TrialKey("fake", 1, 0), "error", 0)
    assert (tally.balanced_rate.successes, tally.balanced_rate.trials) == (2, 3)
