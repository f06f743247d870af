"""The shapes that batches are computed in: a captured graph has one shape, so a batch is padded to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# A deterministic batch has this shape whatever is in it. A plan streams the VLM's weights 62 times, so it needs many
# requests to share them; a segment is bound by arithmetic, and little is lost in small batches.
_PLANS, _SEGMENTS = 16, 8
_STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Rows = list[int]


class BatchShapes:
    """Cuts a batch into parts of known shapes. Each part is (its rows, the rows padded to the shape)."""

    def __init__(self, max_batch_size: int, deterministic: bool) -> None:
        self._deterministic = deterministic
        steps = (*(size for size in _STEPS if size < max_batch_size), max_batch_size)
        self.plan_sizes = (_PLANS,) if deterministic else steps[::-1]  # largest first
        self.segment_sizes = (_SEGMENTS,) if deterministic else steps[::-1]

    def plans(self, prompt_sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        """Parts of a batch of plans; `prompt_sizes`: each one's padded prompt length, which shapes the sums too."""
        yield from self._parts(prompt_sizes, self.plan_sizes)

    def segments(self, prompt_sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        """Parts of a batch of segments."""
        yield from self._parts(prompt_sizes, self.segment_sizes)

    def _parts(self, prompt_sizes: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        if not self._deterministic:
            yield from _cut(list(range(len(prompt_sizes))), sizes)
            return
        for size in sorted(set(prompt_sizes)):
            yield from _cut([row for row, own in enumerate(prompt_sizes) if own == size], sizes)


def _cut(rows: Rows, sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
    largest = sizes[0]
    for start in range(0, len(rows), largest):
        part = rows[start : start + largest]
        shape = min(size for size in sizes if size >= len(part))
        yield part, part + part[:1] * (shape - len(part))
