"""Plans under way, one in each slot, which are decoded together although they are at different waypoints.

A plan takes a slot when its prompt has been read, and leaves it after its last waypoint; meanwhile others come and go.
Each row's values depend on its own slot alone, so they do not show who shared the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wpray.models.gemma import bias_of, rope_tables
from wpray.models.staging import send


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Prompts that have been read, of plans that start."""

    real: Tensor  # (B, S) visible slots of the prefix
    hidden: Tensor  # (B, width) the first value is read from it
    lengths: Tensor  # (B,) prompt tokens
    forced: Tensor  # (B, M, V) values to feed instead of the sampled ones where >= 0
    bias: Tensor | None  # (B, M, S) to add to the scores of a waypoint's values, one family after the other


@dataclass(frozen=True, slots=True)
class WaypointStep:
    """Inputs of one waypoint of the first R slots, each at its own place in its plan."""

    layers: Tensor  # (depth, R, slots, 2 D) keys beside values, written in place
    cos: Tensor  # (R, N, D / 2) rotary tables of the N tokens after a prefix
    sin: Tensor
    visible: Tensor  # (R, N, slots) float32: 0 for slots that such a token sees, else -inf
    hidden: Tensor  # (R, width)
    waypoint: Tensor  # (R,) int64, number of the next waypoint
    forced: Tensor  # (R, M, V)
    bias: Tensor | None  # (R, M, S)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the inputs in order, at the addresses that they always have."""
        given = (self.layers, self.cos, self.sin, self.visible, self.hidden, self.waypoint, self.forced)
        return given if self.bias is None else (*given, self.bias)


class PlanSlots:
    """State of the plans under way, at fixed addresses; all their prompts are padded to the same length."""

    def __init__(self, layers: Tensor, prefix: int, head_dim: int, width: int, shape: tuple[int, int, int]) -> None:
        """Use a cache `layers` (depth, R, slots, 2 D) with the prefix's `prefix` slots first.

        `shape` is the number of a plan's waypoints, of a waypoint's values and of their candidates.
        """
        rows, slots, new = layers.shape[1], layers.shape[2], layers.shape[2] - prefix
        self._head_dim, self.prefix = head_dim, prefix
        waypoints, values, candidates = shape
        at, exact = layers.device, torch.float32
        self.layers = layers
        self._cos, self._sin = torch.zeros((2, rows, new, head_dim // 2), dtype=exact, device=at)
        self._visible = torch.zeros((rows, new, slots), dtype=exact, device=at)
        self._hidden = torch.zeros((rows, width), dtype=layers.dtype, device=at)
        self._waypoint = torch.zeros(rows, dtype=torch.int64, device=at)
        self._forced = torch.full((rows, waypoints, values), -1, device=at)
        self._bias = torch.zeros((rows, waypoints, candidates), dtype=exact, device=at)
        self._biased = False
        self.values = torch.zeros((rows, waypoints, values), dtype=torch.int64, device=at)  # as far as known

    def put(self, rows: Sequence[int], prefixes: Prefixes, first: Tensor) -> None:
        """Start plans in slots `rows`, whose caches hold the prefixes; their next token has position `first` (B,)."""
        at = send(torch.tensor(rows), self.layers.device)
        new = torch.arange(self._visible.shape[1], device=at.device)
        self.layers[:, at, self.prefix :] = 0  # unseen slots of the plan before must be finite
        self._cos[at], self._sin[at] = rope_tables(first[:, None] + new, self._head_dim)
        reached = (new <= new[:, None]).expand(len(at), -1, -1)
        before = prefixes.real[:, None].expand(-1, len(new), -1)
        self._visible[at] = bias_of(torch.cat([before, reached], dim=2))
        self._hidden[at], self._forced[at], self._waypoint[at] = prefixes.hidden, prefixes.forced, 0
        self._biased = prefixes.bias is not None  # all plans of a planner are biased, or none is
        if prefixes.bias is not None:
            self._bias[at] = prefixes.bias

    def step(self, rows: int) -> WaypointStep:
        """Return the inputs of the next waypoint of the first `rows` slots."""
        first = slice(rows)
        return WaypointStep(
            self.layers[:, first],
            self._cos[first],
            self._sin[first],
            self._visible[first],
            self._hidden[first],
            self._waypoint[first],
            self._forced[first],
            self._bias[first] if self._biased else None,
        )

    def note(self, values: Tensor, hidden: Tensor | None) -> None:
        """Keep a waypoint's values (R, V) of the first R slots, and the hidden states (R, width) after it, if any."""
        rows = torch.arange(len(values), device=values.device)
        place = self._waypoint[rows].clamp(max=self.values.shape[1] - 1)  # of no consequence where a slot is free
        self.values[rows, place] = values
        self._waypoint[: len(values)] += 1
        if hidden is not None:
            self._hidden[: len(values)] = hidden
