"""Requests for tests of policies behind servers."""

from __future__ import annotations

import numpy as np

from wpray.policies.base import PolicySpec
from wpray.types import ChunkRequest, Observation, Task, Trial

WORDS = "pick up the bowl"


def chunk_request(spec: PolicySpec, trial: int = 0, chunk_index: int = 0, words: str = WORDS) -> ChunkRequest:
    """Return a request that shows what `spec` asks for, different for each trial and index."""
    rng = np.random.default_rng([trial, chunk_index])
    images = {role: rng.integers(0, 256, (view.height, view.width, 3), np.uint8) for role, view in spec.cameras.items()}
    task = Task("fake", 3, "pick_up_the_bowl", words, num_trials=10, max_steps=50)
    return ChunkRequest(Trial(task, trial, 7), chunk_index, Observation(rng.normal(size=8), images))
