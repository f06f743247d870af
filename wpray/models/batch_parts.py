"""A batch in two phases: prompts are read in parts, then all rows go on together.

Reading costs by the token, so a part of a few prompts is as fast as a whole batch, takes less memory and leaves nothing
to pad. What follows streams the weights, for one row or for many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shapes that a batch is computed in."""

    reads: tuple[int, ...]  # prompts of a part, ascending
    rows: int  # that go on together

    @classmethod
    def whole(cls, count: int) -> BatchShape:
        """One part, nothing padded."""
        return cls((count,), count)

    def parts(self, count: int) -> Iterator[tuple[slice, int]]:
        """(rows, the size that they are padded to) of each part of `count` prompts."""
        start = 0
        while start < count:
            size = max((size for size in self.reads if size <= count - start), default=self.reads[0])
            yield slice(start, min(start + size, count)), size
            start += size


class KvCaches:
    """Keys beside values of every layer, for batches that take turns. They stay where they are."""

    def __init__(self, depth: int, head_dim: int, like: Tensor) -> None:
        """Of the device and dtype of `like`."""
        self._depth, self._width, self._like = depth, 2 * head_dim, like
        self._by_slots: dict[int, Tensor] = {}

    def take(self, rows: int, slots: int) -> Tensor:
        """(depth, rows, slots, 2 D); all of one number of slots share their memory, so ask for the most rows first."""
        known = self._by_slots.get(slots)
        if known is None or known.shape[1] < rows:
            known = self._by_slots[slots] = self._like.new_zeros((self._depth, rows, slots, self._width))
        return known[:, :rows]


def padded(values: Tensor, size: int) -> Tensor:
    """Values (B, ...) with rows of zeros up to `size`."""
    missing = size - values.shape[0]
    return torch.cat([values, values.new_zeros((missing, *values.shape[1:]))]) if missing else values


def read_parts(
    read: Callable[..., tuple[Tensor, ...]], shape: BatchShape, inputs: Sequence[Tensor], cache: Tensor
) -> list[Tensor]:
    """Reads (B, ...) inputs part by part; each one's keys beside values are put first into its row of the cache.

    `read` gives those, (depth, B, S, 2 D), and other results (B, ...), which come back, padded to the shape's rows.
    """
    found: list[list[Tensor]] = []
    for rows, size in shape.parts(len(inputs[0])):
        kv, *others = read(*(padded(values[rows], size) for values in inputs))
        count = rows.stop - rows.start
        cache[:, rows, : kv.shape[2]] = kv[:, :count]
        found.append([other[:count].clone() for other in others])  # the next part may be computed in their memory
    return [padded(torch.cat(parts), shape.rows) for parts in zip(*found, strict=True)]
