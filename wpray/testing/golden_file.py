"""Files of recorded numbers: a model's inputs, and what was computed from them, as arrays of an NPZ file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wpray.errors import BadInputError, shown
from wpray.models.config import IMAGE_SIZE, MAX_DURATION, VOCABULARY, ActionExpertConfig
from wpray.models.token_layout import ANSWER_HEADER_IDS, BOS
from wpray.results.atomic import write_for_user

_IMAGE = (IMAGE_SIZE, IMAGE_SIZE, 3)
_ACTION_PROMPT = 64  # tokens that the action expert's prompts are padded to
_LOWEST_TEXT_ID, _HIGHEST_TEXT_ID = 1000, 250_000  # of prompts: no control ids, no waypoints
_SAMPLES = 3
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class GoldenInputs:
    """Inputs of a planner and an action expert."""

    images: NDArray[np.uint8]  # (B, 2, 224, 224, 3) base, wrist
    prompts: list[list[int]]
    header: list[int]
    action_prompts: list[list[int]]
    start: NDArray[np.float32]  # (B, D)
    end: NDArray[np.float32]  # (B, D)
    duration: NDArray[np.int64]  # (B,)
    noise: NDArray[np.float32]  # (B, H, D)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the inputs under the names of a file."""
        tokens = np.zeros((len(self.action_prompts), _ACTION_PROMPT), np.int64)
        for row, prompt in zip(tokens, self.action_prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in self.action_prompts])
        return {
            "images_base": self.images[:, 0],
            "images_wrist": self.images[:, 1],
            **{f"vlm_prompt_{row}": np.array(prompt) for row, prompt in enumerate(self.prompts)},
            "vlm_header": np.array(self.header),
            "ae_prompt_tokens": tokens,
            "ae_prompt_mask": np.arange(_ACTION_PROMPT) < lengths[:, None],
            "ae_start": self.start,
            "ae_end": self.end,
            "ae_duration": self.duration.astype(np.float32),
            "ae_noise": self.noise,
        }


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of an NPZ file. Raise BadInputError if it is none, or holds pickles."""
    try:
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, not several by name")
        with data:
            return dict(data)
    except _UNREADABLE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:120]
        raise BadInputError(f"{path}: not a readable NPZ file ({reason}); name one that --record wrote") from error


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an NPZ file, whole or not at all. Raise BadInputError if it cannot be written."""
    data = io.BytesIO()
    np.savez_compressed(data, **dict(arrays))  # type: ignore[arg-type]
    write_for_user(path, data.getvalue(), "FILE")


def read_inputs(arrays: Arrays, path: Path, config: ActionExpertConfig) -> GoldenInputs:
    """Return the inputs that a file holds. Raise BadInputError naming one that is missing or of another shape."""
    images = [_array(arrays, path, f"images_{name}", (None, *_IMAGE), np.uint8) for name in ("base", "wrist")]
    count, dim = len(images[0]), config.action_dim
    tokens = _array(arrays, path, "ae_prompt_tokens", (count, None), np.int64)
    mask = _array(arrays, path, "ae_prompt_mask", tokens.shape, np.bool_)
    prompts = [_array(arrays, path, f"vlm_prompt_{row}", (None,), np.int64) for row in range(count)]
    header = arrays.get("vlm_header", np.array(ANSWER_HEADER_IDS))
    duration = _array(arrays, path, "ae_duration", (count,), np.float64).astype(np.int64)
    found = GoldenInputs(
        np.stack([images[0], _of_shape(images[1], (count, *_IMAGE), "images_wrist", path)], axis=1),
        [prompt.tolist() for prompt in prompts],
        [int(token) for token in header],
        [row[valid].tolist() for row, valid in zip(tokens, mask, strict=True)],
        _array(arrays, path, "ae_start", (count, dim), np.float32),
        _array(arrays, path, "ae_end", (count, dim), np.float32),
        duration,
        _array(arrays, path, "ae_noise", (count, config.horizon, dim), np.float32),
    )
    _check(found, path)
    return found


def make_inputs(config: ActionExpertConfig, state_dim: int, seed: int) -> GoldenInputs:
    """Return inputs that follow from the seed: noisy images, prompts of random words, waypoints within their range."""
    rng = np.random.default_rng(seed)
    ends = np.zeros((2, _SAMPLES, config.action_dim), np.float32)
    ends[..., :state_dim] = rng.uniform(-1, 1, (2, _SAMPLES, state_dim))
    return GoldenInputs(
        rng.integers(0, 256, (_SAMPLES, 2, *_IMAGE), dtype=np.uint8),
        [_prompt(rng, int(length)) for length in rng.integers(30, 60, _SAMPLES)],
        list(ANSWER_HEADER_IDS),
        [_prompt(rng, int(length)) for length in rng.integers(10, 30, _SAMPLES)],
        ends[0],
        ends[1],
        rng.integers(1, MAX_DURATION, _SAMPLES),
        rng.standard_normal((_SAMPLES, config.horizon, config.action_dim), dtype=np.float32),
    )


def _prompt(rng: np.random.Generator, length: int) -> list[int]:
    return [BOS, *rng.integers(_LOWEST_TEXT_ID, _HIGHEST_TEXT_ID, length - 1).tolist()]


def _array(
    arrays: Arrays, path: Path, name: str, shape: tuple[int | None, ...], kind: type[np.generic]
) -> NDArray[Any]:
    if name not in arrays:
        raise BadInputError(f"{path}: lacks the array {name}; name a file that --record wrote")
    found = _of_shape(arrays[name], shape, name, path)
    if not np.can_cast(found.dtype, kind, "same_kind"):
        raise BadInputError(f"{path}: {name} is {found.dtype}, not {np.dtype(kind)}; record the file again")
    return found.astype(kind)


def _of_shape(found: NDArray[Any], shape: tuple[int | None, ...], name: str, path: Path) -> NDArray[Any]:
    fits = found.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, found.shape, strict=True))
    if not fits:
        wanted = f"({', '.join('any' if size is None else str(size) for size in shape)})"
        raise BadInputError(f"{path}: {name} has shape {found.shape}, not {wanted}; it is of another model")
    return found


def _check(inputs: GoldenInputs, path: Path) -> None:
    """Raise BadInputError for values that no model can be fed."""
    for name, prompts in (("vlm_prompt", inputs.prompts), ("ae_prompt", inputs.action_prompts)):
        if not all(prompt and all(0 <= token < VOCABULARY for token in prompt) for prompt in prompts):
            raise BadInputError(f"{path}: {shown(name)}: is empty or holds an id outside of 0 to {VOCABULARY - 1}")
    if not inputs.images.size:
        raise BadInputError(f"{path}: holds no samples; record the file again")
    if not ((inputs.duration >= 0) & (inputs.duration <= MAX_DURATION)).all():
        raise BadInputError(f"{path}: ae_duration: {inputs.duration.tolist()} are not all 0 to {MAX_DURATION} steps")
