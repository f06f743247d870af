"""A chunk policy of random actions, drawn from each request's own key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from wpray.policies.base import PolicySpec
from wpray.types import ChunkReply, ChunkRequest


class ChunkyPolicy:
    """Gives chunks of drifting actions, and the largest of them as a metric."""

    class Settings(BaseModel):
        """Shape of its chunks."""

        horizon: int = Field(16, ge=1, description="actions of a chunk")
        execute_steps: int = Field(8, ge=0, description="actions that are executed of it")
        fails_on: int | None = Field(None, description="trial for which it raises")

    @classmethod
    def spec_of(cls, settings: Settings) -> PolicySpec:
        steps = settings.execute_steps
        return PolicySpec("chunky", True, False, num_gpus=0, max_batch_size=4, kind="chunk", execute_steps=steps)

    def __init__(self, settings: Settings) -> None:
        self.spec = self.spec_of(settings)
        self._settings = settings

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        trial, image = request.trial, request.observation.base_image
        assert image is not None and image.shape == (224, 224, 3)
        if trial.init_state == self._settings.fails_on:
            raise ArithmeticError("not this one")
        rng = np.random.default_rng([trial.seed, trial.task.task_id, trial.init_state, request.chunk_index])
        drift = np.cumsum(rng.normal(0, 0.15, (self._settings.horizon, 7)), axis=0)
        actions = np.clip(rng.uniform(-0.5, 0.5, 7) + drift, -1, 1)
        return ChunkReply(actions, metrics={"largest": float(np.abs(actions).max())})
