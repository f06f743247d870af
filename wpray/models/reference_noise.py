"""Noise of the flow as the reference evaluators draw it, from a CPU generator that each episode seeds.

torch's AVX2 and AVX-512 kernels agree to the bit; without them a value differs by up to 1.4e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SEEDS_OF_A_TASK = 1000


def episode_seed(eval_seed: int, task_id: int, trial: int) -> int:
    """Return the seed of an episode's generator."""
    return eval_seed + _SEEDS_OF_A_TASK * task_id + trial


def segment_noise(seed: int, segment_index: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise (`shape`, float32) of an episode's segment, counted from 0."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(segment_index):
        torch.randn((1, *shape), generator=generator)
    return torch.randn((1, *shape), generator=generator)[0]
