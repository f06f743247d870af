"""Checks of servers' answers before the simulator executes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from wpray.errors import InvalidRequestError
from wpray.types import ACTION_DIM, ChunkReply, ChunkRequest, FloatArray, ImageArray

_ENOUGH = 30  # chunks without a negative gripper command, after which a sign is doubted


def reply_of(
    name: str, found: Any, steps: int, executable: Callable[[FloatArray], FloatArray] = lambda actions: actions
) -> ChunkReply:
    """Return the reply of which the first `steps` actions are executed, or all if 0; `executable` converts them.

    Raise InvalidRequestError as `chunk_of` does.
    """
    actions = executable(chunk_of(name, found))
    return ChunkReply(actions[: steps or None], rest=actions[steps:] if steps else None)


def chunk_of(name: str, found: Any) -> FloatArray:
    """Return (H, 7) actions. Raise InvalidRequestError where they are no such array.

    The server's policy would give the same again, so that its trial becomes an error row.
    """
    try:
        actions = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name}: the actions are no array of numbers: {found!r:.200}") from error
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not len(actions):
        raise InvalidRequestError(f"{name}: the actions have the shape {actions.shape}, expected (H, {ACTION_DIM})")
    if not np.isfinite(actions).all():
        raise InvalidRequestError(f"{name}: the actions hold a value that is not finite")
    return actions


def image_of(name: str, request: ChunkRequest, camera: str) -> ImageArray:
    """Return what a camera shows. Raise InvalidRequestError if the environment has no such camera."""
    image = request.observation.images.get(camera)
    if image is None:
        raise InvalidRequestError(f"{name}: the observation has no image of the camera {camera}")
    return image


class GripperWatch:
    """Watch that warns once if gripper commands do not look like -1 open .. +1 close."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._lock = note, threading.Lock()
        self._seen = 0
        self._low, self._high = np.inf, -np.inf

    def see(self, actions: FloatArray) -> None:
        """Take the commands of one chunk into account."""
        with self._lock:
            self._seen += 1
            self._low = min(self._low, float(actions[:, -1].min()))
            self._high = max(self._high, float(actions[:, -1].max()))
            doubted = self._seen == _ENOUGH and self._low >= 0
        if doubted:
            between = f"between {self._low:.2g} and {self._high:.2g}"
            self._note(
                f"every gripper command of the first {_ENOUGH} chunks is {between}: LIBERO's gripper opens at -1 and "
                "closes at +1, so this one never opens; the server may mean 0 and 1"
            )


def open_at_one(actions: FloatArray) -> FloatArray:
    """Return actions whose gripper is 0 closed and 1 open as LIBERO's: made +1 to close and -1 to open."""
    turned = actions.copy()
    turned[:, -1] = -np.sign(2 * turned[:, -1] - 1)
    return turned
