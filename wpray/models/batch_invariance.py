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


def invariant_shapes(
    trace: Trace, reference: BatchShape, reads: Sequence[int], rows: Sequence[int]
) -> tuple[BatchShape, ...]:
    """Return the shapes, ascending by rows, that compute every request as `reference` does.

    They contain its own parts and rows, and those of `reads` and `rows` that agree. `trace(start, stop, shape)` returns
    fingerprints of every value that is computed for the synthetic requests of these numbers.
    """
    sizes = sorted({*rows, reference.rows}, reverse=True)  # the largest first, because the others reuse its memory
    found = {size: trace(0, size, BatchShape(reference.reads, size)) for size in sizes}
    others = range(reference.rows, sizes[0], reference.rows)
    rest = [trace(start, min(start + reference.rows, sizes[0]), reference) for start in others]
    expected = torch.cat([found[reference.rows], *rest])
    parts = {size: trace(0, size, BatchShape((size,), reference.rows)) for size in reads if size <= reference.rows}
    agreeing = {size for size, trial in parts.items() if torch.equal(trial, expected[:size])}
    own = tuple(sorted(agreeing | {*reference.reads}))
    return tuple(BatchShape(own, size) for size in reversed(sizes) if torch.equal(found[size], expected[:size]))


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
