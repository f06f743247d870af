"""Token layouts: the encoding of waypoints as ids of PaliGemma's vocabulary. No other module holds these ids.

A waypoint is `<wp>`, proprio bins, in the newer layout a gripper token, `<dur>` and a duration. Ids of a family count
down: a larger value has a smaller id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpray.models.config import MAX_DURATION, NUM_DURATIONS

BOS = 2
ANSWER_HEADER_IDS = (4022, 235292, 235248)  # of "Action: "

TokenLayoutName = Literal["bins256", "bins300"]


@dataclass(frozen=True, slots=True)
class TokenFamily:
    """Ids of which one is sampled at a place: value v has the id `first` - v."""

    first: int
    count: int

    @property
    def ids(self) -> list[int]:
        """Ids of the values 0, 1, ..."""
        return [self.first - value for value in range(self.count)]

    def ids_of(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return the token ids of values, in the same shape."""
        return self.first - np.asarray(values, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Tokens that a planner writes.

    The state of a waypoint has `proprio_dim` numbers, and the gripper (1.0 open, 0.0 closed) if it is a token.
    """

    name: TokenLayoutName
    proprio_dim: int
    bins: TokenFamily
    durations: TokenFamily
    gripper: TokenFamily | None  # its value 0 is open, 1 is closed
    waypoint: int  # the id of <wp>
    duration: int  # the id of <dur>

    @property
    def families(self) -> tuple[TokenFamily, ...]:
        """Families of a waypoint's sampled values, in order; the duration is the last."""
        gripper = () if self.gripper is None else (self.gripper,)
        return (*[self.bins] * self.proprio_dim, *gripper, self.durations)

    @property
    def state_dim(self) -> int:
        """Length of a waypoint's state."""
        return len(self.families) - 1

    @property
    def tokens_per_waypoint(self) -> int:
        """Number of sampled values, plus `<wp>` and `<dur>`."""
        return len(self.families) + 2

    @property
    def scores(self) -> int:
        """Candidates of a waypoint's values, of all families together."""
        return self.first_score(len(self.families))

    def first_score(self, index: int) -> int:
        """Return the number of candidates of a waypoint's values before number `index`."""
        return sum(family.count for family in self.families[:index])

    @property
    def lowest_id(self) -> int:
        """Lowest id of the layout."""
        return min(self.waypoint, self.duration, *(family.ids[-1] for family in self.families))

    def to_bins(self, normalized: ArrayLike) -> NDArray[np.int64]:
        """Return the bins of normalized values; values outside of [-1, 1] get the nearest one.

        Raise ValueError for a value that is not finite.
        """
        values = np.asarray(normalized)
        if not np.isfinite(values).all():
            raise ValueError("a proprio value is not finite")
        edges = np.linspace(-1, 1, self.bins.count + 1)[:-1]  # lower edges of the bins
        bins: NDArray[np.int64] = np.digitize(np.clip(values, -1, 1), edges).astype(np.int64) - 1
        return bins

    def bin_centers(self, bins: ArrayLike) -> NDArray[np.float32]:
        """Return the normalized values at the bins' centers, float32."""
        return ((np.asarray(bins, dtype=np.float64) + 0.5) * (2 / self.bins.count) - 1).astype(np.float32)

    def states(self, values: ArrayLike) -> NDArray[np.float32]:
        """Return states (..., `state_dim`), float32, of sampled values, which may include the duration."""
        sampled = np.asarray(values)[..., : self.state_dim]
        centers = self.bin_centers(sampled[..., : self.proprio_dim])
        return np.concatenate([centers, (1 - sampled[..., self.proprio_dim :]).astype(np.float32)], axis=-1)

    def values(self, states: ArrayLike, durations: ArrayLike) -> NDArray[np.int64]:
        """Return values (..., M, `state_dim` + 1) of states (..., M, `state_dim`) and durations (..., M).

        Durations are clipped to the longest. Raise ValueError for a state that is not finite.
        """
        state = np.asarray(states)
        bins = self.to_bins(state[..., : self.proprio_dim])
        closed = (state[..., self.proprio_dim :] <= 0.5).astype(np.int64)
        steps = np.clip(np.asarray(durations, dtype=np.int64), 0, MAX_DURATION)[..., None]
        return np.concatenate([bins, closed, steps], axis=-1)

    def encode(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return token ids (..., M * `tokens_per_waypoint`) of sampled values (..., M, `state_dim` + 1)."""
        sampled = np.asarray(values, dtype=np.int64)
        ids = np.array([family.first for family in self.families]) - sampled
        marks = [np.full((*ids.shape[:-1], 1), mark) for mark in (self.waypoint, self.duration)]
        waypoints = np.concatenate([marks[0], ids[..., :-1], marks[1], ids[..., -1:]], axis=-1)
        return waypoints.reshape(*ids.shape[:-2], -1)

    def decode(self, tokens: ArrayLike) -> NDArray[np.int64]:
        """Return values (..., M, `state_dim` + 1), duration last, of token ids (..., M * `tokens_per_waypoint`).

        Raise ValueError if the ids are not whole waypoints.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        waypoints: NDArray[np.int64] = ids.reshape(*ids.shape[:-1], -1, self.tokens_per_waypoint)
        sampled = np.concatenate([waypoints[..., 1:-2], waypoints[..., -1:]], axis=-1)
        values: NDArray[np.int64] = np.array([family.first for family in self.families]) - sampled
        counts = np.array([family.count for family in self.families])
        marked = (waypoints[..., 0] == self.waypoint) & (waypoints[..., -2] == self.duration)
        if not (marked & ((values >= 0) & (values < counts)).all(axis=-1)).all():
            raise ValueError("the token ids are not whole waypoints")
        return values


BINS256 = TokenLayout(
    name="bins256",
    proprio_dim=8,
    bins=TokenFamily(257023, 256),
    durations=TokenFamily(256767, NUM_DURATIONS),
    gripper=None,
    waypoint=256733,
    duration=256732,
)
BINS300 = TokenLayout(
    name="bins300",
    proprio_dim=6,
    bins=TokenFamily(257023, 300),
    durations=TokenFamily(256723, NUM_DURATIONS),
    gripper=TokenFamily(256687, 2),
    waypoint=256689,
    duration=256688,
)
TOKEN_LAYOUTS: dict[TokenLayoutName, TokenLayout] = {layout.name: layout for layout in (BINS256, BINS300)}
