"""Batches in two phases: prompts are read in parts, then all rows continue together.

The cost of reading grows with the tokens, so a part of a few prompts is as fast as a whole batch, takes less memory and
needs no padding. The later phase streams the weights, for one row or for many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wpray.models.staging import send


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Shapes in which a batch is computed."""

    reads: tuple[int, ...]  # prompts of a part, ascending
    rows: int  # rows that continue together

    @classmethod
    def whole(cls, count: int) -> BatchShape:
        """Return the shape with one part and no padding."""
        return cls((count,), count)

    def parts(self, count: int) -> Iterator[tuple[slice, int]]:
        """Yield (rows, padded size) of each part of `count` prompts."""
        start = 0
        while start < count:
            size = max((size for size in self.reads if size <= count - start), default=self.reads[0])
            yield slice(start, min(start + size, count)), size
            start += size


class KvCaches:
    """Caches of keys beside values of every layer, at fixed addresses, for batches that take turns."""

    def __init__(self, depth: int, head_dim: int, like: Tensor) -> None:
        """Prepare caches on the device and in the dtype of `like`."""
        self._depth, self._width, self._like = depth, 2 * head_dim, like
        self._by_slots: dict[int, Tensor] = {}

    def take(self, rows: int, slots: int) -> Tensor:
        """Return a cache (depth, rows, slots, 2 D). Those of equal slots share memory: ask for most rows first."""
        known = self._by_slots.get(slots)
        if known is None or known.shape[1] < rows:
            known = self._by_slots[slots] = self._like.new_zeros((self._depth, rows, slots, self._width))
        return known[:, :rows]


def padded(values: Tensor, size: int) -> Tensor:
    """Return values (B, ...) with rows of zeros up to `size`."""
    missing = size - values.shape[0]
    return torch.cat([values, values.new_zeros((missing, *values.shape[1:]))]) if missing else values


def read_parts(
    read: Callable[..., tuple[Tensor, ...]],
    shape: BatchShape,
    inputs: Sequence[Tensor],
    cache: Tensor,
    rows: Sequence[int] | None = None,
) -> list[Tensor]:
    """Read (B, ...) inputs part by part, and write their keys beside values to the first slots of their cache rows.

    `rows` are the cache's rows of the inputs (None: the first ones). `read` returns keys beside values (depth, B, S,
    2 D) and other results (B, ...). Return the latter, padded to the shape's rows.
    """
    found: list[list[Tensor]] = []
    at = None if rows is None else send(torch.tensor(rows), cache.device)
    for part, size in shape.parts(len(inputs[0])):
        kv, *others = read(*(padded(values[part], size) for values in inputs))
        count = part.stop - part.start
        cache[:, part if at is None else at[part], : kv.shape[2]] = kv[:, :count]
        found.append([other[:count].clone() for other in others])  # copies: the next part reuses the memory
    return [padded(torch.cat(parts), shape.rows) for parts in zip(*found, strict=True)]
