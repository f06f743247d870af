"""Statistics of paired trials: exact test, interval of the difference, trials needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from wpray.types import TrialKey

_MOST_TRIALS = 10_000_000


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Counts of trials with an outcome in both runs, by their two outcomes."""

    both: int  # succeeded in A and in B
    only_a: int
    only_b: int
    neither: int

    @property
    def total(self) -> int:
        """Number of pairs."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def discordant(self) -> int:
        """Number of pairs with different outcomes, the only ones that a paired test uses."""
        return self.only_a + self.only_b

    @property
    def difference(self) -> float:
        """B's success rate minus A's; NaN without pairs."""
        return (self.only_b - self.only_a) / self.total if self.total else math.nan


def pairs_of(a: Mapping[TrialKey, bool | None], b: Mapping[TrialKey, bool | None]) -> PairCounts:
    """Count the trials that have an outcome in both, by what came out; None is an error."""
    outcomes = [(a[key], b[key]) for key in a.keys() & b.keys()]
    return PairCounts(*(outcomes.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979): those under a level hold together at that level."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def mcnemar_p(pairs: PairCounts) -> float:
    """Return the two-sided p-value of the exact McNemar test: flips are equally likely in both directions."""
    return float(scipy.stats.binomtest(pairs.only_a, pairs.discordant, 0.5).pvalue) if pairs.discordant else 1.0


def difference_interval(pairs: PairCounts, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of B's rate minus A's for paired trials (Bonett and Price 2012: adjusted Wald)."""
    total = pairs.total + 2
    a, b = (pairs.only_a + 1) / total, (pairs.only_b + 1) / total
    half = float(scipy.stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt((a + b - (b - a) ** 2) / total)
    return max(-1.0, b - a - half), min(1.0, b - a + half)


def mcnemar_power(trials: int, difference: float, discordant: float, alpha: float = 0.05) -> float:
    """Return the probability that the exact test of `trials` pairs finds a `difference` (> 0) of rates at `alpha`.

    `discordant` (at least `difference`) is the share of pairs whose outcome flips.
    """
    spread = 9 * math.sqrt(trials * discordant * (1 - discordant)) + 9
    middle = trials * discordant
    flips = np.arange(max(0, int(middle - spread)), min(trials, int(middle + spread)) + 1)
    binom = scipy.stats.binom
    critical = binom.ppf(alpha / 2, flips, 0.5)  # the largest count with a tail of at most alpha / 2
    critical -= binom.cdf(critical, flips, 0.5) > alpha / 2
    upward = (discordant + difference) / 2 / discordant
    rejected = binom.cdf(critical, flips, upward) + binom.sf(flips - critical - 1, flips, upward)
    return float(np.sum(binom.pmf(flips, trials, discordant) * rejected))


def trials_needed(difference: float, discordant: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return about the fewest pairs that show `difference` with probability `power`; the exact power is a saw.

    Return None if ten million pairs are too few.
    """
    discordant = min(max(discordant, difference), 1.0)
    high = 8
    while mcnemar_power(high, difference, discordant, alpha) < power:
        high *= 2
        if high > _MOST_TRIALS:
            return None
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        if mcnemar_power(middle, difference, discordant, alpha) >= power:
            high = middle
        else:
            low = middle
    return high
