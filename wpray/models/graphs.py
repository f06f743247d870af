"""CUDA graphs for a function of fixed shapes: the GPU then runs a whole plan or segment without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 2  # eager runs before a capture: libraries allocate their workspaces in the first


class GraphCache:
    """Captures `function` once for each set of argument shapes, and replays it afterwards.

    Caches may share a `pool` (of `torch.cuda.graph_pool_handle`), and then take the memory of the largest graph instead
    of the sum: every result is copied out before anything else is replayed, so no graph reads what another overwrites.
    """

    def __init__(self, function: Callable[..., Tensor], pool: Any = None) -> None:
        self._function = function
        self._graphs: dict[tuple[torch.Size, ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result; a tensor of the caller's own."""
        key = tuple(argument.shape for argument in arguments)
        if key not in self._graphs:
            self._graphs[key] = _Captured(self._function, arguments, self._pool)
        return self._graphs[key].replay(arguments)


class _Captured:
    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Tensor, ...], pool: Any) -> None:
        self._arguments = tuple(argument.clone() for argument in arguments)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(*self._arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = function(*self._arguments)

    def replay(self, arguments: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self._arguments, arguments, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result.clone()
