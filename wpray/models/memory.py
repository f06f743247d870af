"""Memory of a GPU that a model's process takes, and what is left."""

from __future__ import annotations

import torch


def gpu_memory(device: torch.device) -> tuple[int, int] | None:
    """Return the most bytes that this process has reserved on the GPU, and the free ones; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_reserved(device), free
