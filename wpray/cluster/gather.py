"""Calls to many Ray actors or nodes at once, some of which may be busy, starting or gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray


def gather_within(calls: Sequence[Any], timeout_s: float) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of every call that ended without an error within `timeout_s`, in order."""
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    for index, reference in enumerate(calls):
        if reference in ready:
            try:
                yield index, ray.get(reference)
            except ray.exceptions.RayError:
                continue


def cause_of(error: BaseException | None) -> BaseException | None:
    """Return the exception of the called code, if it raised one; else Ray's own."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
