"""When a run stops early: pure rules, and how often the sequential test errs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from wpray.config import StopWhenConfig
from wpray.results.statistics import Rate, wilson
from wpray.stopping import ErrorBook, decided, too_many_errors


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
    book = ErrorBook(max_share=0.05)
    one, other = ("fake", 0, 0), ("fake", 0, 1)
    assert not book.policy_repeats(one, "A", "first life")
    assert not book.policy_repeats(one, "A", "first life")
    assert not book.policy_repeats(other, "A", "second life")
    assert not book.policy_repeats(one, "B", "second life")
    assert book.policy_repeats(one, "A", "second life")


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
