"""Parts that drawers of all benchmarks share: digests of models, and drawing in the process of the environment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from wpray.benchmarks.base import Drawer
from wpray.errors import BadInputError
from wpray.types import DrawRequest, ImageArray


def model_digest(data: bytes) -> str:
    """Return the SHA-256 of a model's bytes in hexadecimal digits, as `DrawRequest.model` names it."""
    return hashlib.sha256(data).hexdigest()


def check_digest(model: str, data: bytes) -> None:
    """Raise BadInputError unless `data` has the digest `model`."""
    found = model_digest(data)
    if found != model:
        raise BadInputError(f"model to draw: {len(data)} bytes have the digest {found}, not {model}; send them again")


class LocalDrawClient:
    """Client of a drawer in the same process."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        """Return the pictures by role; let the drawer learn the model if it does not know it."""
        if not self._drawer.knows(request.model):
            self._drawer.learn(request.model, model_data())
        (pictures,) = self._drawer.draw([request])
        return pictures
