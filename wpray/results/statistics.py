"""How sure a success rate is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, norm


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate with its interval; NaN where nothing was tried."""

    successes: int
    trials: int
    rate: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """Wilson's score interval of a proportion."""
    if trials == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Rate(successes, trials, successes / trials, float(interval.low), float(interval.high))


def stratified(strata: Sequence[tuple[int, int]], confidence: float = 0.95) -> Rate:
    """The mean of the strata's rates, each weighted by its trials, with a stratified Wilson interval.

    `strata` are (successes, trials) of each task. Tasks differ in difficulty, so the variance of the overall rate is
    that within tasks alone: never more than that of one pooled proportion. The interval is Wilson's for the number of
    trials of one pooled proportion that would have the same variance. Each variance is taken at its Wilson centre,
    which few trials draw towards one half: where a task has too few to show its rate, the interval is the pooled one.
    """
    strata = [(k, n) for k, n in strata if n > 0]
    successes, trials = sum(k for k, _ in strata), sum(n for _, n in strata)
    if trials == 0:
        return wilson(0, 0)
    z2 = float(norm.ppf(0.5 + confidence / 2)) ** 2
    within = sum(n / trials * _variance(k, n, z2) for k, n in strata)
    effective = trials * max(1.0, _variance(successes, trials, z2) / within)
    return _wilson_at(successes / trials, effective, z2, successes, trials)


def _variance(successes: int, trials: int, z2: float) -> float:
    """Of one trial, at the Wilson centre of its rate."""
    centre = (successes + z2 / 2) / (trials + z2)
    return centre * (1 - centre)


def _wilson_at(rate: float, effective: float, z2: float, successes: int, trials: int) -> Rate:
    centre = (rate + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2) / (1 + z2 / effective) * math.sqrt(rate * (1 - rate) / effective + z2 / (4 * effective**2))
    return Rate(successes, trials, rate, max(0.0, centre - half), min(1.0, centre + half))
