"""The shapes that batches are computed in: a captured graph has one shape, so a batch is padded to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# A deterministic batch has this shape whatever is in it. A plan streams the VLM's weights 62 times, so it needs many
# requests to share them; a segment is bound by arithmetic, and little is lost in small batches. A processor without a
# GPU gains nothing from batches, and takes requests one by one.
_PLANS, _SEGMENTS = 16, 8
_STEPS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256)

Rows = list[int]


class BatchShapes:
    """Cuts a batch into parts of known shapes. Each part is (its rows, the rows padded to the shape).

    `plan_shapes` and `segment_shapes` are the parts' sizes, `plan_sizes` and `segment_sizes` those of batches without
    padding, all ascending.
    """

    def __init__(self, max_batch_size: int, deterministic: bool, gpu: bool = True) -> None:
        self._deterministic = deterministic
        steps = (*(size for size in _STEPS if size < max_batch_size), max_batch_size)
        self.plan_shapes = self.segment_shapes = self.plan_sizes = self.segment_sizes = steps
        if deterministic:
            plans, segments = (_PLANS, _SEGMENTS) if gpu else (1, 1)
            self.plan_shapes, self.segment_shapes = (plans,), (segments,)
            self.plan_sizes = tuple(range(plans, max_batch_size + 1, plans))
            self.segment_sizes = tuple(range(segments, max_batch_size + 1, segments))

    def plans(self, prompt_sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        """Parts of a batch of plans; `prompt_sizes`: each one's padded prompt length, which shapes the sums too."""
        yield from self._parts(prompt_sizes, self.plan_shapes)

    def segments(self, prompt_sizes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        """Parts of a batch of segments."""
        yield from self._parts(prompt_sizes, self.segment_shapes)

    def _parts(self, prompt_sizes: Sequence[int], shapes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
        if not self._deterministic:
            yield from _cut(list(range(len(prompt_sizes))), shapes)
            return
        for size in sorted(set(prompt_sizes)):
            yield from _cut([row for row, own in enumerate(prompt_sizes) if own == size], shapes)


def _cut(rows: Rows, shapes: Sequence[int]) -> Iterator[tuple[Rows, Rows]]:
    largest = shapes[-1]
    for start in range(0, len(rows), largest):
        part = rows[start : start + largest]
        shape = next(size for size in shapes if size >= len(part))
        yield part, part + part[:1] * (shape - len(part))
