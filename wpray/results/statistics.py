"""Intervals of success rates.

SciPy imports its statistics when they are first used. That takes up to a second, which no start should wait for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module

import scipy

_EVIDENCE = 0.9  # quantile under equal rates that a spread between tasks must exceed to count


@dataclass(frozen=True, slots=True)
class Rate:
    """Success rate with its interval; NaN without trials."""

    successes: int
    trials: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two success rates with its interval; NaN where one has no trial."""

    value: float
    low: float
    high: float


def prepare() -> None:
    """Import what the first interval needs."""
    import_module("scipy.stats")


@lru_cache(maxsize=4096)
def wilson(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """Return Wilson's score interval of a proportion."""
    if trials == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Rate(successes, trials, successes / trials, float(interval.low), float(interval.high))


def stratified(strata: Sequence[tuple[int, int]], confidence: float = 0.95) -> Rate:
    """Return the strata's mean rate, weighted by trials, with a stratified Wilson interval.

    `strata` are (successes, trials) of each task. Tasks are not drawn at random, so the variance of the overall rate is
    the variance within tasks: the pooled p (1 - p) / n less the share between tasks. The interval is Wilson's at the
    number of trials with this variance. Few trials per task cannot distinguish a hard task from bad luck, so only the
    spread above the 90% quantile of Pearson's test of equal rates counts as variance between tasks. Without such a
    spread, the interval is the pooled one.
    """
    strata = [(k, n) for k, n in strata if n > 0]
    pooled = wilson(sum(k for k, _ in strata), sum(n for _, n in strata), confidence)
    if pooled.rate in (0.0, 1.0) or len(strata) < 2:
        return pooled
    within = pooled.rate * (1 - pooled.rate)
    spread = sum(n * (k / n - pooled.rate) ** 2 for k, n in strata) / within  # chi-square for equal rates
    between = max(0.0, spread - _chance_spread(len(strata))) / pooled.trials
    return _wilson_at(pooled, pooled.trials / (1 - between), float(scipy.stats.norm.ppf(0.5 + confidence / 2)) ** 2)


def average(suites: Sequence[Sequence[tuple[int, int]]], confidence: float = 0.95) -> Rate:
    """Return the mean of the suites' rates, each suite counted alike, with an interval stratified by task.

    `suites` are the (successes, trials) of each suite's tasks. NaN if a suite has no trial. Suites of different sizes
    have different variances, so the distances to the limits of their own intervals are combined as standard errors are
    (Zou and Donner 2008).
    """
    rates = [stratified(tasks, confidence) for tasks in suites]
    trials = [rate.trials for rate in rates]
    if not trials or not all(trials):
        return wilson(0, 0)
    if len(set(trials)) == 1:
        return stratified([stratum for tasks in suites for stratum in tasks], confidence)
    mean = math.fsum(rate.rate for rate in rates) / len(rates)
    low = mean - math.hypot(*(rate.rate - rate.low for rate in rates)) / len(rates)
    high = mean + math.hypot(*(rate.high - rate.rate for rate in rates)) / len(rates)
    return Rate(sum(rate.successes for rate in rates), sum(trials), mean, max(0.0, low), min(1.0, high))


def difference(rate: Rate, reference: Rate) -> Difference:
    """Return `rate` less `reference`, of trials that are no pairs, with its interval (Newcombe 1998, method 10)."""
    if not (rate.trials and reference.trials):
        return Difference(math.nan, -1.0, 1.0)
    found = rate.rate - reference.rate
    low = found - math.hypot(rate.rate - rate.low, reference.high - reference.rate)
    high = found + math.hypot(rate.high - rate.rate, reference.rate - reference.low)
    return Difference(found, max(-1.0, low), min(1.0, high))


def average_of_tried(suites: Sequence[Sequence[tuple[int, int]]]) -> Rate:
    """Return `average` over those suites that have an outcome, as a run under way needs it."""
    return average([tasks for tasks in suites if any(n for _, n in tasks)])


@lru_cache
def _chance_spread(strata: int) -> float:
    return float(scipy.stats.chi2.ppf(_EVIDENCE, strata - 1))


def _wilson_at(pooled: Rate, effective: float, z2: float) -> Rate:
    rate = pooled.rate
    centre = (rate + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2) / (1 + z2 / effective) * math.sqrt(rate * (1 - rate) / effective + z2 / (4 * effective**2))
    return replace(pooled, low=max(0.0, centre - half), high=min(1.0, centre + half))
