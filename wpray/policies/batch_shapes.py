"""Shapes of batches of learned policies. A captured graph has one shape, so a batch is padded to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wpray.models.batch_invariance import InvariantShapes, Trace
from wpray.models.batch_parts import BatchShape
from wpray.models.config import Precision

Rows = list[int]
TraceOf = Callable[[int, int, BatchShape, int], Any]  # a Trace that also takes a padded prompt length


class Shapes(Protocol):
    """Shapes for prompts of one padded length."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the shapes, ascending."""

    def of(self, count: int) -> BatchShape:
        """Return the shape for `count` requests; a smaller one takes the first of them."""

    @property
    def most(self) -> int:
        """Rows of the largest shape that needs no trial now."""

    def known(self, count: int) -> BatchShape:
        """Return the smallest shape for `count` requests, `most` at most, that needs no trial now."""


@dataclass(frozen=True, slots=True)
class AnyShapes:
    """Shapes whose answers may differ in bits."""

    reads: tuple[int, ...]  # prompts of a part, ascending
    sizes: tuple[int, ...]

    def of(self, count: int) -> BatchShape:
        """Return the smallest shape for `count` requests, or the largest one."""
        return BatchShape(self.reads, next((size for size in self.sizes if size >= count), self.sizes[-1]))

    @property
    def most(self) -> int:
        """Rows of the largest shape."""
        return self.sizes[-1]

    def known(self, count: int) -> BatchShape:
        """Return what `of` returns."""
        return self.of(count)


@dataclass(frozen=True, slots=True)
class RequestKind:
    """Possible shapes of one kind of request."""

    rows: tuple[int, ...]  # sizes with a graph of their own, ascending
    fixed: Mapping[Precision, BatchShape]  # shape of every answer if answers must not depend on batches
    reads: tuple[int, ...] = (1, 2, 4, 8)  # more prompts at once are not faster and take memory

    def up_to(self, max_batch_size: int) -> AnyShapes:
        """Return all shapes."""
        return AnyShapes(self.reads_up_to(max_batch_size), self.rows_up_to(max_batch_size))

    def reads_up_to(self, max_batch_size: int) -> tuple[int, ...]:
        """Return sizes of parts, ascending, up to half a batch: a whole one is 2% faster but takes twice the memory."""
        return tuple(size for size in self.reads if size == 1 or 2 * size <= max_batch_size)

    def rows_up_to(self, max_batch_size: int) -> tuple[int, ...]:
        """Return the numbers of rows, ascending."""
        return (*(size for size in self.rows if size < max_batch_size), max_batch_size)

    def largest(self, precision: Precision, max_batch_size: int, deterministic: bool) -> BatchShape:
        """Return the shape that takes the most memory."""
        fixed = self.fixed[precision]
        if not deterministic:
            return self.up_to(max_batch_size).of(max_batch_size)
        if precision == "float32":
            return fixed
        reads = sorted({*self.reads_up_to(max_batch_size), *fixed.reads})
        return BatchShape(tuple(reads), max(max_batch_size, fixed.rows))

    def invariant_shapes(self, trace: Trace, precision: Precision, max_batch_size: int) -> Shapes:
        """Return the fixed shape and those that give its bits. In float32, none did on an H100."""
        fixed = self.fixed[precision]
        if precision == "float32":
            return InvariantShapes(trace, fixed, (), ())
        return InvariantShapes(trace, fixed, self.reads_up_to(max_batch_size), self.rows_up_to(max_batch_size))


_ONE_BY_ONE = AnyShapes((1,), (1,))  # because batches gain nothing on a CPU


class BatchShapes:
    """Splitter of batches of one kind of request into parts of known shapes."""

    def __init__(self, shapes: Shapes | Callable[[int], Shapes]) -> None:
        """Take `shapes`, or a function that returns them for a padded prompt length.

        With a function, all prompts of a part are padded to the same length, because the length also affects sums.
        """
        self._any = None if callable(shapes) else shapes
        self._find = shapes if callable(shapes) else None
        self._found: dict[int, Shapes] = {}

    def of(self, prompt_size: int) -> Shapes:
        """Return the shapes for prompts of a padded length. The first call for a length may take seconds."""
        if self._any is not None:
            return self._any
        assert self._find is not None
        if prompt_size not in self._found:
            self._found[prompt_size] = self._find(prompt_size)
        return self._found[prompt_size]

    def found(self, prompt_size: int) -> Shapes | None:
        """Return what `of` returns if it needs no trial, else None."""
        return self._any if self._any is not None else self._found.get(prompt_size)

    def sizes(self, prompt_size: int, max_batch_size: int) -> tuple[int, ...]:
        """Return the batch sizes that are worth filling, ascending; none if there are shapes of many sizes."""
        rows = self.of(prompt_size).sizes
        return tuple(range(rows[0], max_batch_size + 1, rows[0])) if len(rows) == 1 else ()

    def cut(self, prompt_sizes: Sequence[int]) -> Iterator[tuple[Rows, BatchShape]]:
        """Yield the parts of a batch as rows and shapes. `prompt_sizes` are the requests' padded prompt lengths."""
        if self._any is not None:
            yield from _cut(list(range(len(prompt_sizes))), self._any)
            return
        for size in sorted(set(prompt_sizes)):
            yield from _cut([row for row, own in enumerate(prompt_sizes) if own == size], self.of(size))


def _cut(rows: Rows, shapes: Shapes) -> Iterator[tuple[Rows, BatchShape]]:
    while rows:
        shape = shapes.of(len(rows))
        yield rows[: shape.rows], shape
        rows = rows[shape.rows :]


def fixed_shapes(
    kind: RequestKind, trace: TraceOf, precision: Precision, max_batch_size: int, gpu: bool = True
) -> BatchShapes:
    """Return shapes in which no answer depends on its batch."""
    if not gpu:
        return BatchShapes(lambda prompt_size: _ONE_BY_ONE)
    return BatchShapes(
        lambda prompt_size: kind.invariant_shapes(
            lambda start, stop, shape: trace(start, stop, shape, prompt_size), precision, max_batch_size
        )
    )
