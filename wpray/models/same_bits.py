"""Which shapes of a batch give the same bits: found out on the GPU at hand, not assumed.

A product's sums may be cut differently for another number of rows. Where they are not, an answer is the same to the
bit in batches of either size. Kernels are chosen by shape, so one try tells: a sum that is cut elsewhere changes some
of the millions of values that are computed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wpray.models.batch_parts import BatchShape
from wpray.models.config import IMAGE_SIZE

Trace = Callable[[int, int, BatchShape], Tensor]
_PROMPTS = 10  # lengths of made-up prompts


def alike(trace: Trace, reference: BatchShape, reads: Sequence[int], rows: Sequence[int]) -> tuple[BatchShape, ...]:
    """Shapes, ascending by rows, that compute every request as `reference` does.

    Its own parts and rows are among them, and of `reads` and `rows` those that agree. `trace(start, stop, shape)` gives
    fingerprints of all that is computed for made-up requests of these numbers.
    """
    sizes = sorted({*rows, reference.rows}, reverse=True)  # the largest first: all others' memory is part of its own
    found = {size: trace(0, size, BatchShape(reference.reads, size)) for size in sizes}
    others = range(reference.rows, sizes[0], reference.rows)
    rest = [trace(start, min(start + reference.rows, sizes[0]), reference) for start in others]
    expected = torch.cat([found[reference.rows], *rest])
    parts = {size: trace(0, size, BatchShape((size,), reference.rows)) for size in reads if size <= reference.rows}
    agreeing = {size for size, trial in parts.items() if torch.equal(trial, expected[:size])}
    own = tuple(sorted(agreeing | {*reference.reads}))
    return tuple(BatchShape(own, size) for size in reversed(sizes) if torch.equal(found[size], expected[:size]))


def made_up(start: int, stop: int, prompt_size: int, *shape: int) -> tuple[Tensor, list[list[int]], Tensor]:
    """Images (B, 2, 224, 224, 3) uint8, prompts and values (B, *shape) of requests by their numbers, no two alike.

    Prompts have `prompt_size` tokens or a few less.
    """
    images, prompts, values = [], [], []
    for number in range(start, stop):
        generator = torch.Generator().manual_seed(number)
        images.append(torch.randint(256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator))
        prompts.append([2 + number + place for place in range(prompt_size - number % _PROMPTS)])
        values.append(torch.randn(shape, generator=generator))
    return torch.stack(images), prompts, torch.stack(values)


def fingerprints(*tensors: Tensor) -> Tensor:
    """(B, tensors) int64 of tensors (B, ...); rows that differ in a bit have, but for 1 in 2^63, different ones."""
    return torch.stack([_fingerprint(tensor) for tensor in tensors], dim=1)


def _fingerprint(tensor: Tensor) -> Tensor:
    """The bits of each row as integers, weighed at random. The sum wraps, so its order does not matter."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.flatten(1).view(integers).long()
    generator = torch.Generator(tensor.device).manual_seed(0)
    weights = torch.randint(2**62, bits.shape[1:], generator=generator, device=tensor.device)
    return (bits * (2 * weights + 1)).sum(1)
