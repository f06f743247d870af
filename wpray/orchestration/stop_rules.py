"""Rules that stop a run before every trial has run; pure functions of the results so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from wpray.config.groups import StopWhenConfig
from wpray.results.statistics import Rate
from wpray.types import TrialKey

_LEAST_ERRORS = 3
_ROUND = 3  # trials of a task; few, because an early stop saves hundreds of episodes and a compilation costs seconds
START_STALLS = 5  # times retry.stall_s for an actor to start, because importing a simulator takes longer than a step
OR_TOO_SHORT = "or retry.stall_s is less than it takes: raise it"  # ends the message for an actor that seems to hang


@dataclass(frozen=True, slots=True)
class Stop:
    """Reason why a run ends before its last trial."""

    reason: str
    at_once: bool = False  # abandon the running trials
    intended: bool = False  # True if stop_when requested it: the outcomes suffice
    of_this_run: bool = False  # True if its policy or its episodes' errors are the reason: other runs may work


@dataclass(slots=True)
class ErrorBook:
    """Errors of a run so far, and the rule that stops the run because of them."""

    max_share: float
    rows: int = 0  # error rows
    _seen: Counter[str] = field(default_factory=Counter)

    def add_row(self, summary: str) -> None:
        """Count a trial that ended in an error row; `summary` is its first line."""
        self.rows += 1
        self._seen[summary] += 1

    def reason_to_stop(self, finished: int) -> str | None:
        """Return why the run must stop after `finished` rows, errors included; None if it need not."""
        if not too_many_errors(self.rows, finished, self.max_share):
            return None
        summary, count = self._seen.most_common(1)[0]
        return f"{self.rows} of {finished} episodes ended in an error; most often ({count}): {summary}"


@dataclass(slots=True)
class PolicyErrors:
    """Failures of the policy so far, and whether a fresh process would help."""

    _incarnations: dict[tuple[TrialKey, str], str] = field(default_factory=dict)  # by trial and kind of error

    def repeat(self, trial: TrialKey, kind: str, incarnation: str) -> bool:
        """Return whether the same failure ended the same trial in another `incarnation`: a fresh one does not help.

        The other requests that fail in one broken process are no repetition, and neither is another error hours later.
        """
        return self._incarnations.setdefault((trial, kind), incarnation) != incarnation


def too_many_errors(errors: int, finished: int, max_share: float) -> bool:
    """Return True for at least three errors that are more than `max_share` of the finished trials."""
    return errors >= _LEAST_ERRORS and errors > max_share * finished


def round_size(settings: StopWhenConfig) -> int | None:
    """Return how many trials of a task run in one go: few if the run may stop early, else None.

    An early stop needs the same trials of all tasks.
    """
    return None if settings.half_width is None and settings.reference_rate is None else _ROUND


def decided(overall: Callable[[], Rate], settings: StopWhenConfig) -> str | None:
    """Return why the outcomes so far suffice, as `settings` asks; None if they do not, or no rule is set.

    `overall` returns the rate over trials that all tasks have run (`Tally.balanced_rate`), on which both rules rest.
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
    alpha = settings.alpha / 2  # because either test may find a difference that is not there
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
