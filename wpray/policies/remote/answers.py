"""Checks of servers' answers before the simulator executes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from wpray.errors import InvalidRequestError
from wpray.types import ACTION_DIM, ChunkReply, ChunkRequest, FloatArray, ImageArray

_ENOUGH = 30  # after so many chunks without a negative gripper command, a warning is logged
_ENOUGH_STARTS = 10  # after so many episodes that begin with a closing gripper, a warning is logged
_BEYOND = 0.25  # below 0 or above 1, a gripper command is none of that range


def reply_of(actions: FloatArray, steps: int) -> ChunkReply:
    """Return the reply of which the first `steps` actions are executed, or all if 0."""
    return ChunkReply(actions[: steps or None], rest=actions[steps:] if steps else None)


def chunk_of(name: str, found: Any) -> FloatArray:
    """Return (H, 7) actions. Raise InvalidRequestError if they are not.

    The server would answer the same again, so the trial becomes an error row.
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
    """Watch that warns once of each sign that gripper commands do not mean what they are taken to mean."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._lock = note, threading.Lock()
        self._seen, self._starts, self._opens_first, self._beyond = 0, 0, False, False
        self._low, self._high = np.inf, -np.inf

    def see_unit(self, actions: FloatArray) -> None:
        """Check commands as they come from a server whose gripper is 0 closed .. 1 open."""
        odd = actions[:, -1][np.abs(actions[:, -1] - 0.5) > 0.5 + _BEYOND]
        with self._lock:
            doubted, self._beyond = bool(len(odd)) and not self._beyond, self._beyond or bool(len(odd))
        if doubted:
            self._note(
                f"a gripper command is {odd[0]:.2g}, where 0 (closed) to 1 (open) is expected: a server that means "
                "-1 to 1 is turned around here"
            )

    def see_start(self, actions: FloatArray, request: ChunkRequest) -> None:
        """Check the commands that are executed, of which an episode's first ought to open the gripper."""
        if request.chunk_index or not len(actions):
            return
        with self._lock:
            self._starts += 1
            self._opens_first = self._opens_first or bool(actions[0, -1] <= 0)
            doubted = self._starts == _ENOUGH_STARTS and not self._opens_first
        if doubted:
            self._note(
                f"each of the first {_ENOUGH_STARTS} episodes begins by closing the gripper, and LIBERO's "
                "demonstrations begin by opening it: the sign of its commands may be turned around"
            )

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
