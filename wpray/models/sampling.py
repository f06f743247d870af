"""Choice of a planner among a value's candidates: the best one, or one drawn at a temperature.

A draw from softmax(scores / T) is the best of scores / T plus Gumbel noise. The noise of a plan is drawn beforehand, on
the CPU, from the request's key; so a plan depends on its key alone, and the kernels that choose the best stay as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wpray.models.token_layout import TokenLayout


@dataclass(frozen=True, slots=True)
class Sampling:
    """Choice of a plan's values."""

    temperature: float = 0.0  # 0: the best one
    forbids_terminal_first: bool = False  # the first waypoint's duration is not 0

    @property
    def needs_bias(self) -> bool:
        """Return whether a plan is computed with a bias."""
        return self.temperature > 0 or self.forbids_terminal_first

    def bias(self, layout: TokenLayout, num_waypoints: int, generator: np.random.Generator) -> np.ndarray:
        """Return the addition (M, S), float32, to the scores of each waypoint's S candidates.

        `generator`, seeded with the request's key, is used only at a temperature.
        """
        shape = (num_waypoints, layout.scores)
        added = np.zeros(shape, np.float32)
        if self.temperature > 0:
            waiting = np.maximum(generator.standard_exponential(shape), np.finfo(np.float64).tiny)
            added = -np.log(waiting).astype(np.float32)
        if self.forbids_terminal_first:
            added[0, layout.first_score(len(layout.families) - 1)] = -np.inf  # value 0 of the durations
        return added


GREEDY = Sampling()
