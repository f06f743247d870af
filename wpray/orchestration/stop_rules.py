"""When a run stops before every trial has run: pure rules on what has come in so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from wpray.config import StopWhenConfig
from wpray.results.statistics import Rate
from wpray.types import TrialKey

_LEAST_ERRORS = 3
_ROUND = 3  # trials: a task's scene compiles for seconds, an early stop saves hundreds of episodes
START_STALLS = 5  # times retry.stall_s for an actor to start: a simulator's import takes longer than any step
OR_TOO_SHORT = "or retry.stall_s is less than it takes: raise it"  # said of whatever seems to hang


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends before its last trial."""

    reason: str
    at_once: bool = False  # leave the trials in hand
    intended: bool = False  # the configuration asked for it: the outcomes are enough


@dataclass(slots=True)
class ErrorBook:
    """The errors of a run so far, and whether they are a reason to stop it."""

    max_share: float
    rows: int = 0  # error rows
    _seen: Counter[str] = field(default_factory=Counter)

    def add_row(self, summary: str) -> None:
        """Counts a trial that ended in an error row; `summary` is its first line."""
        self.rows += 1
        self._seen[summary] += 1

    def reason_to_stop(self, finished: int) -> str | None:
        """Why the run must stop after `finished` rows, errors included; None if it need not."""
        if not too_many_errors(self.rows, finished, self.max_share):
            return None
        summary, count = self._seen.most_common(1)[0]
        return f"{self.rows} of {finished} episodes ended in an error; most often ({count}): {summary}"


@dataclass(slots=True)
class PolicyErrors:
    """How the policy has failed so far, and whether a fresh process of it would help."""

    _incarnations: dict[tuple[TrialKey, str], str] = field(
        default_factory=dict
    )  # of the replica, by trial and kind of error

    def repeat(self, trial: TrialKey, kind: str, incarnation: str) -> bool:
        """Return whether the policy failed alike on the same trial in another `incarnation`: a fresh one does not help.

        The other requests that one sick process fails on are no repetition, nor is another flake hours later.
        """
        return self._incarnations.setdefault((trial, kind), incarnation) != incarnation


def too_many_errors(errors: int, finished: int, max_share: float) -> bool:
    """The stop rule: at least three errors, and more than `max_share` of the finished trials."""
    return errors >= _LEAST_ERRORS and errors > max_share * finished


def round_size(settings: StopWhenConfig) -> int | None:
    """Trials of a task that run in one go: few if the run may stop early, for that needs the same trials of all."""
    return None if settings.half_width is None and settings.reference_rate is None else _ROUND


def decided(overall: Callable[[], Rate], settings: StopWhenConfig) -> str | None:
    """Why the outcomes so far are enough, as `settings` asks; None if they are not, or it asks for nothing.

    `overall` gives the rate over trials that all tasks have run (`Tally.balanced_rate`), on which both rules rest.
    `half_width`: of the 95% interval. `reference_rate`: Wald's sequential probability ratio tests of the reference
    against a rate that is `difference` better, and one that is `difference` worse, each at half of `alpha`.
    """
    if settings.half_width is None and settings.reference_rate is None:
        return None
    rate = overall()
    half = (rate.high - rate.low) / 2
    if settings.half_width is not None and rate.trials > 0 and half < settings.half_width:
        return f"the 95% interval's half-width is {half:.1%}"
    if settings.reference_rate is None:
        return None
    return _compared(rate.successes, rate.trials, settings, settings.reference_rate)


def _compared(successes: int, trials: int, settings: StopWhenConfig, reference: float) -> str | None:
    alpha = settings.alpha / 2  # either test may find a difference that is not there
    accept = math.log((1 - settings.beta) / alpha)
    reject = math.log(settings.beta / (1 - alpha))
    better = min(reference + settings.difference, 1 - 1e-3 * (1 - reference))
    worse = max(reference - settings.difference, 1e-3 * reference)
    ratios = [_log_ratio(successes, trials, reference, other) for other in (better, worse)]
    for word, ratio in zip(("better", "worse"), ratios, strict=True):
        if ratio >= accept:
            return f"{successes}/{trials} is {word} than the reference rate {reference:.1%}"
    if all(ratio <= reject for ratio in ratios):
        return f"{successes}/{trials} is within {settings.difference:.1%} of the reference rate {reference:.1%}"
    return None


def _log_ratio(successes: int, trials: int, null: float, other: float) -> float:
    failures = trials - successes
    return successes * math.log(other / null) + failures * math.log((1 - other) / (1 - null))
