"""A policy whose actions depend on every pixel, number and word that it gets, and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.types import ChunkReply, ChunkRequest

_STEPS = 4


def spec_of(config: Config) -> PolicySpec:
    return PolicySpec("looking", images=True, privileged=False, num_gpus=0, max_batch_size=8, kind="chunk")


def build(config: Config) -> LookingPolicy:
    return LookingPolicy(spec_of(config))


class LookingPolicy:
    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [ChunkReply(self._actions(request)) for request in requests]

    def _actions(self, request: ChunkRequest) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        seen = request.observation
        digest = hashlib.sha256(request.trial.task.instruction.encode() + seen.proprio.tobytes())
        for image in seen.images.values():
            digest.update(image.tobytes())
        random = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
        return random.uniform(-0.5, 0.5, (_STEPS, self.spec.action.dim))
