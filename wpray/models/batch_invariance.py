"""Shapes of a batch that give the same bits, determined by trial on the GPU at hand.

A product's sums may be split differently for another number of rows. If they are not, an answer is the same to the bit
in batches of either size. Kernels are selected by shape, so one trial is sufficient: a sum that is split elsewhere
changes some of the millions of values that are computed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wpray.models.batch_parts import BatchShape
from wpray.models.config import IMAGE_SIZE

Trace = Callable[[int, int, BatchShape], Tensor]
_PROMPT_LENGTHS = 10  # different lengths of synthetic prompts


class InvariantShapes:
    """Shapes that compute every request as a fixed one does, each tried when a batch first needs it.

    A trial runs a shape on synthetic requests and captures its graph, which takes up to a second. So a policy can
    answer once the fixed shape and the largest one have run.
    """

    def __init__(self, trace: Trace, reference: BatchShape, reads: Sequence[int], rows: Sequence[int]) -> None:
        """Run `reference`, the parts `reads` and the largest of `rows`, which are the sizes to try.

        `trace(start, stop, shape)` returns fingerprints of every value that is computed for the synthetic requests of
        these numbers.
        """
        self._trace, self._reference = trace, reference
        self.sizes = tuple(sorted({*rows, reference.rows}))  # sizes to try
        largest = self.sizes[-1]
        first = trace(0, largest, BatchShape(reference.reads, largest))  # first, because the others reuse its memory
        starts = range(0, largest, reference.rows) if largest > reference.rows else ()
        parts = [trace(start, min(start + reference.rows, largest), reference) for start in starts]
        self._expected = torch.cat(parts) if parts else first
        self._agreeing = {reference.rows: True, largest: torch.equal(first, self._expected)}
        self._reads = tuple(sorted({*reference.reads, *filter(self._part_agrees, reads)}))

    def of(self, count: int) -> BatchShape:
        """Return the smallest shape for `count` requests, or the largest one there is for the first of them."""
        larger = (size for size in self.sizes if size >= count)
        smaller = (size for size in reversed(self.sizes) if size < count)
        size = next(size for size in (*larger, *smaller) if self._agrees(size))
        return BatchShape(self._reads, size)

    @property
    def most(self) -> int:
        """Rows of the largest shape among those that have been tried."""
        return max(size for size, agrees in self._agreeing.items() if agrees)

    def known(self, count: int) -> BatchShape:
        """Return the smallest shape for `count` requests, `most` at most, among those that have been tried."""
        size = min(size for size, agrees in self._agreeing.items() if agrees and size >= count)
        return BatchShape(self._reads, size)

    def _agrees(self, size: int) -> bool:
        if size not in self._agreeing:
            found = self._trace(0, size, BatchShape(self._reference.reads, size))
            self._agreeing[size] = torch.equal(found, self._expected[:size])
        return self._agreeing[size]

    def _part_agrees(self, size: int) -> bool:
        if size > self._reference.rows:
            return False
        found = self._trace(0, size, BatchShape((size,), self._reference.rows))
        return torch.equal(found, self._expected[:size])


def synthetic_requests(start: int, stop: int, prompt_size: int, *shape: int) -> tuple[Tensor, list[list[int]], Tensor]:
    """Return images (B, 2, 224, 224, 3) uint8, prompts and values (B, *shape) of requests, each from its number.

    Prompts have `prompt_size` tokens or a few less.
    """
    images, prompts, values = [], [], []
    for number in range(start, stop):
        generator = torch.Generator().manual_seed(number)
        images.append(torch.randint(256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator))
        prompts.append([2 + number + place for place in range(prompt_size - number % _PROMPT_LENGTHS)])
        values.append(torch.randn(shape, generator=generator))
    return torch.stack(images), prompts, torch.stack(values)


def fingerprints(*tensors: Tensor) -> Tensor:
    """Return fingerprints (B, tensors) int64 of tensors (B, ...); rows that differ share one with probability 2^-63."""
    return torch.stack([_fingerprint(tensor) for tensor in tensors], dim=1)


def _fingerprint(tensor: Tensor) -> Tensor:
    """Return the sum of each row's bits as integers with random weights. It wraps, so its order does not matter."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.flatten(1).view(integers).long()
    generator = torch.Generator(tensor.device).manual_seed(0)
    weights = torch.randint(2**62, bits.shape[1:], generator=generator, device=tensor.device)
    return (bits * (2 * weights + 1)).sum(1)
