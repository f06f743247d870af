"""The same question to many Ray actors or nodes, of which some may be busy, starting or gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray


def gather_within(asked: Sequence[Any], timeout_s: float) -> Iterator[tuple[int, Any]]:
    """(index in `asked`, what came back) of every call that ended without an error within `timeout_s`, in order."""
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for index, reference in enumerate(asked):
        if reference in ready:
            try:
                yield index, ray.get(reference)
            except ray.exceptions.RayError:
                continue


def cause_of(error: BaseException | None) -> BaseException | None:
    """What the called code raised, if it did; else Ray's own error."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
