"""Requests and replies as they travel: openpi's names, and a few of wpray's own that other clients leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wpray.benchmarks.views import center_crop
from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.remote.wire import TRIAL, camera_key, trial_of
from wpray.types import PROPRIO_DIM, FloatArray, ImageArray, ImageSpec, Observation, Task, Trial

STATE, PROMPT, RESET = "observation/state", "prompt", "reset"
_ENDLESS = 1 << 31  # steps and trials of an episode that a client does not describe


def observation_of(message: Mapping[str, Any], spec: PolicySpec, crop_scale: float | None) -> Observation:
    """Return the observation in a request, its images cropped as `center_crop` says.

    Raises InvalidRequestError if it is not as the policy requires.
    """
    cameras = spec.cameras if spec.images else {}
    images = {role: _image(message, camera_key(role), view) for role, view in cameras.items()}
    if crop_scale is not None:
        images = {role: center_crop(image, crop_scale) for role, image in images.items()}
    return Observation(_state(message), images)


def trial_in(message: Mapping[str, Any], number: int, seed: int) -> Trial:
    """Return the trial that a request names, else one of that `number`: noise is drawn from its key."""
    words = message.get(PROMPT)
    if not isinstance(words, str) or not words.strip():
        raise InvalidRequestError(f"{PROMPT}: must be the instruction, not {words!r:.80}")
    if TRIAL in message:
        return trial_of(message[TRIAL], words)
    return Trial(Task("served", 0, "served", words, _ENDLESS, _ENDLESS), number, seed)


def _image(message: Mapping[str, Any], key: str, view: ImageSpec) -> ImageArray:
    image, shape = message.get(key), (view.height, view.width, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
        raise InvalidRequestError(f"{key}: must be uint8 of the shape {shape}, not {_described(image)}")
    return image


def _state(message: Mapping[str, Any]) -> FloatArray:
    state = message.get(STATE)
    if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.shape != (PROPRIO_DIM,):
        shape = f"({PROPRIO_DIM},): position, axis-angle, two finger joints"
        raise InvalidRequestError(f"{STATE}: must be floats of the shape {shape}, not {_described(state)}")
    return state.astype(np.float64)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of the shape {value.shape}"
    return "missing" if value is None else f"{value!r:.80}"
