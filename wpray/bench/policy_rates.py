"""Rates at which this device reads and multiplies, and the least time that a pass over layers takes at them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from wpray.models.config import IMAGE_TOKENS, GemmaConfig, Precision, SiglipConfig

_GPU_BYTES, _CPU_BYTES = 2**31, 2**26  # bytes read to measure the bandwidth: far more than caches hold
_GPU_SIDE, _CPU_SIDE = 8192, 512  # width of the matrices that are multiplied


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Best rates of the device, as measured here, and the bytes of a number."""

    bytes_per_s: float  # memory reads
    flops: float  # matrix products in the compute precision
    number: int

    def pass_s(self, weights: int, tokens: int) -> float:
        """Return the seconds of multiplying `tokens` rows with so many weights, or of reading those, the longer one."""
        return max(weights * self.number / self.bytes_per_s, 2 * weights * tokens / self.flops)

    def gemma_s(self, config: GemmaConfig, tokens: int) -> float:
        """Return the least seconds of one pass over `tokens` tokens; attention and norms are left out."""
        inner = config.heads * config.head_dim
        layer = config.width * (2 * inner + 2 * config.head_dim) + 3 * config.width * config.mlp
        return self.pass_s(config.depth * layer, tokens)

    def vision_s(self, config: SiglipConfig, batch: int) -> float:
        """Return the least seconds of the features of both cameras' images."""
        layer = 4 * config.width**2 + 2 * config.width * config.mlp
        return self.pass_s(config.depth * layer, 2 * IMAGE_TOKENS * batch)


def measure_rates(precision: Precision, device: torch.device) -> DeviceRates:
    """Return the best read bandwidth and matrix rate of a few attempts."""
    kind = getattr(torch, precision)
    size, side = (_GPU_BYTES, _GPU_SIDE) if device.type == "cuda" else (_CPU_BYTES, _CPU_SIDE)
    big = torch.zeros(size, dtype=torch.uint8, device=device).view(torch.int64)
    read_s = min(timed(lambda: big.sum()) for _ in range(3))
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    product_s = min(timed(lambda: a @ b) for _ in range(3))
    return DeviceRates(size / read_s, 2 * side**3 / product_s, kind.itemsize)


def timed(function: Callable[[], Any], calls: int = 10, warm_up: int = 2) -> float:
    """Return the median seconds per call, including the GPU's work."""
    return statistics.median(samples(function, calls, warm_up))


def samples(function: Callable[[], Any], calls: int, warm_up: int = 2) -> list[float]:
    """Return the seconds of each call, including the GPU's work."""
    for _ in range(warm_up):
        function()
    _synchronize()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        function()
        _synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
