"""Weights with a LoRA adapter beside them: y = W x + (B (A x)) s, each product rounded to the weights' dtype.

That is an active adapter. A merged one is added to the weights first, which rounds at other places, so both differ in
bits. The tied embedding table has an adapter, too: E(x) = W[x] + (A[x] B) s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models.stored_table import StoredTable, TableAdapter

LOW, HIGH, SCALE = ".lora_A.weight", ".lora_B.weight", ".lora_scale"  # suffixes of a module's name


@dataclass(frozen=True, slots=True)
class Adapter:
    """The low-rank part of one linear layer."""

    low: Tensor  # (rank, inputs)
    high: Tensor  # (outputs, rank)
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the term that is added to W x."""
        found = F.linear(F.linear(x.to(self.low.dtype), self.low), self.high)
        return found if self.scale == 1 else found * self.scale


@dataclass(frozen=True, slots=True)
class AdaptedWeight:
    """A weight whose rows belong to one linear layer or several, each with its adapter or none."""

    base: Tensor  # (outputs of all, inputs)
    adapters: tuple[Adapter | None, ...]
    outputs: tuple[int, ...]  # of each layer

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.base.device

    def added(self, x: Tensor) -> Tensor:
        """Return the adapters' terms, one layer after the other; zeros for a layer without an adapter."""
        parts = [
            x.new_zeros((*x.shape[:-1], count)) if adapter is None else adapter(x)
            for adapter, count in zip(self.adapters, self.outputs, strict=True)
        ]
        return torch.cat(parts, dim=-1)


Weight = Tensor | AdaptedWeight


def project(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return the product with a linear layer's weight, including its adapter's term."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    return F.linear(x, weight.base, bias) + weight.added(x)


def take_weight(weights: dict[str, Tensor], *modules: str) -> Weight:
    """Take the weights of layers that read the same input out of `weights`, as one, with their adapters."""
    parts = [weights.pop(f"{module}.weight") for module in modules]
    base = parts[0] if len(parts) == 1 else torch.cat(parts)
    adapters = tuple(_take_adapter(weights, module) for module in modules)
    if not any(adapters):
        return base
    return AdaptedWeight(base, adapters, tuple(len(part) for part in parts))


def merged(base: Tensor, low: Tensor, high: Tensor, scale: float) -> Tensor:
    """Return W + (B A) s: the product in float32, rounded to the dtype of W, and added in it."""
    return base + (high.float() @ low.float() * scale).to(base.dtype)


class AdaptedTable:
    """An embedding table with an adapter."""

    def __init__(self, base: StoredTable, low: StoredTable, high: Tensor, scale: float, merge: bool) -> None:
        """Keep `low` (vocabulary, rank), which stays in its file, and `high` (rank, width)."""
        self._base, self._low, self._high, self._scale, self._merge = base, low, high, scale, merge
        self.dtype, self.shape = base.dtype, base.shape

    def __len__(self) -> int:
        return len(self._base)

    def take(self, ids: Sequence[int]) -> Tensor:
        """Return rows (N, width) on the host. Raise ValueError for a row that does not exist."""
        rows, low = self._base.take(ids), self._low.take(ids)
        added = _row_products(low, self._high)
        if self._merge:
            return rows + (added * self._scale).to(self.dtype)
        return rows + added.to(self.dtype) * self._scale

    def scoring(self, ids: Sequence[int]) -> tuple[Tensor, TableAdapter | None]:
        """Return the rows that score these ids, and an active adapter's part of the scores."""
        if self._merge:
            return self.take(ids), None
        return self._base.take(ids), TableAdapter(self._low.take(ids).float(), self._high.float(), self._scale)


def _row_products(low: Tensor, high: Tensor) -> Tensor:
    """Return A B in float32, row by row, because a token's embedding must not depend on others read with it."""
    wide = high.double()
    rows = [(row.double()[:, None] * wide).sum(0).float() for row in low]
    return torch.stack(rows) if rows else high.new_empty((0, high.shape[1]), dtype=torch.float32)


def _take_adapter(weights: dict[str, Tensor], module: str) -> Adapter | None:
    low, high = weights.pop(module + LOW, None), weights.pop(module + HIGH, None)
    if low is None or high is None:
        return None
    return Adapter(low, high, weights.pop(module + SCALE).item())
