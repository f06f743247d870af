"""At which substep stock LIBERO looks at the simulator: robosuite's observable clock, with its float arithmetic."""

from __future__ import annotations


class ObservableClock:
    """Counts simulated time as each robosuite observable does.

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
        """To the start of an episode."""
        self._elapsed = 0.0
        self._sampled = False

    def tick(self, force: bool = False) -> bool:
        """Advances by one substep; returns whether observables sample now."""
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
