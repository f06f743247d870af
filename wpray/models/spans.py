"""Time that a device takes for some of its work, also where more work is queued before and after it."""

from __future__ import annotations

import time

import torch


class Span:
    """Span of a device's work, from when it is made to `end`."""

    def __init__(self, device: torch.device) -> None:
        """Begin after what the device's current stream has been given so far."""
        self._on_gpu = device.type == "cuda"
        self._began, self._ended = time.perf_counter(), 0.0
        if self._on_gpu:
            self._first, self._last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._first.record()

    def end(self) -> None:
        """End after what the device's current stream has been given so far."""
        self._ended = time.perf_counter()
        if self._on_gpu:
            self._last.record()

    def seconds(self) -> float:
        """Return its duration; wait until the device has done the work."""
        if not self._on_gpu:
            return self._ended - self._began
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1000
