"""The clock of robosuite's observables, with its float arithmetic: it says at which substep they sample."""

from __future__ import annotations


class ObservableClock:
    """Simulated time, counted as each robosuite observable does.

    An observable samples at the first substep after its period began, and begins a new period once the accumulated
    time reaches it. The sums are floats, so which substep that is depends on rounding: the same operations in the same
    order are the only way to agree (it is the 24th of 25 in an episode, after the forced updates of a reset).
    """

    def __init__(self, timestep: float, period: float) -> None:
        """`timestep` of one substep and sampling `period` of an observable, seconds."""
        self._timestep = timestep
        self._period = period
        self.reset()

    def reset(self) -> None:
        """Go back to the start of an episode."""
        self._elapsed = 0.0
        self._sampled = False

    def tick(self, force: bool = False) -> bool:
        """Advance by one substep; return True if observables sample now."""
        samples = False
        self._elapsed += self._timestep
        if (not self._sampled and self._period >= self._elapsed) or force:
            samples = True
            self._sampled = True
        if self._elapsed >= self._period:
            samples = samples or not self._sampled
            self._elapsed %= self._period
            self._sampled = False
        return samples
