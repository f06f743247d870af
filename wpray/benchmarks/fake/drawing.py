"""Pictures of the fake benchmark: flat, in a colour that is the hand's position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpray.benchmarks.drawing import check_digest
from wpray.benchmarks.views import policy_view
from wpray.types import DrawRequest, FloatArray, ImageArray

CAMERA_SIZE = (16, 16)  # height and width, pixels


def flat_image(hand: FloatArray, height: int, width: int) -> ImageArray:
    """Return (height, width, 3) in the colour of the hand's position (3,), m."""
    colour = np.clip(128 + 300 * hand, 0, 255).astype(np.uint8)
    return np.broadcast_to(colour, (height, width, 3)).copy()


class FakeDrawer:
    """Drawer of flat pictures. Its models are some bytes a task, so that transports have something to send."""

    def __init__(self) -> None:
        self._models: dict[str, bytes] = {}

    def knows(self, model: str) -> bool:
        """Return True if the model of this digest was learned."""
        return model in self._models

    def prepare(self, model: str, data: bytes) -> None:
        """Return at once: nothing about learning is slow."""

    def learn(self, model: str, data: bytes) -> None:
        """Keep a model. Raises BadInputError if `data` has another digest than `model`."""
        check_digest(model, data)
        self._models[model] = data

    def draw(self, requests: Sequence[DrawRequest]) -> list[dict[str, ImageArray]]:
        """Return the pictures of each request by role. Raises KeyError if it does not know a request's model."""
        return [self._pictures(request) for request in requests]

    def close(self) -> None:
        """Forget all models."""
        self._models.clear()

    def _pictures(self, request: DrawRequest) -> dict[str, ImageArray]:
        if request.model not in self._models:
            raise KeyError(request.model)
        image = flat_image(request.pose["hand"], *CAMERA_SIZE)
        return {role: policy_view(image, spec) for role, (_, spec) in request.views.items()}
