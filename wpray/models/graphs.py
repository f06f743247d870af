"""CUDA graphs for functions of fixed shapes, so that the GPU runs a whole phase without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")


class GraphCache(Generic[ResultT]):
    """Cache of graphs of `function`: one capture per set of argument shapes, replayed afterwards.

    Caches that share a `pool` (of `torch.cuda.graph_pool_handle`) take the memory of the largest graph instead of the
    sum. A result must then be copied before another graph of the pool is replayed.
    """

    def __init__(self, function: Callable[..., ResultT], pool: Any = None, shared: int = 0) -> None:
        """Prepare the cache. The first `shared` arguments are used in place, with one graph per address."""
        self._function, self._shared = function, shared
        self._graphs: dict[tuple[Any, ...], _Captured[ResultT]] = {}
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool

    def __call__(self, *arguments: Tensor) -> ResultT:
        """Return the function's result, in memory that the next call of any cache of the pool overwrites."""
        places = [argument.data_ptr() for argument in arguments[: self._shared]]
        key = (*places, *(argument.shape for argument in arguments))
        if key not in self._graphs:
            self._graphs[key] = _Captured(self._function, arguments, self._pool, self._shared)
        return self._graphs[key].replay(arguments)


class _Captured(Generic[ResultT]):
    def __init__(self, function: Callable[..., ResultT], arguments: tuple[Tensor, ...], pool: Any, shared: int) -> None:
        self._given = shared  # later arguments are copied
        self._arguments = (*arguments[:shared], *(argument.clone() for argument in arguments[shared:]))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self._arguments)  # because kernels compile and libraries allocate in the first run
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # because the pool needs the memory that the eager runs took
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = function(*self._arguments)

    def replay(self, arguments: tuple[Tensor, ...]) -> ResultT:
        for own, given in zip(self._arguments[self._given :], arguments[self._given :], strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result
