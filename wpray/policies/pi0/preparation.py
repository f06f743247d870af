"""Preparation of requests before their batch: tokens, normalized state, noise and staged images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from wpray.errors import BadInputError, InvalidRequestError, wrapping_errors
from wpray.models.staging import StagedImages, Staging
from wpray.policies.pi0.spec import TOKENIZER
from wpray.policies.waypoint_vla.statistics import PolicyScaling
from wpray.trials import trial_generator
from wpray.types import PROPRIO_DIM, ChunkRequest, Float32Array, IntArray

_BOS = "<bos>"
_NOISE = "pi0 flow noise"  # a change of this text changes every outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyChunk(ChunkRequest):
    """Request in the model's form."""

    images: StagedImages
    prompt: IntArray  # (T,) tokens after those of the images
    state: Float32Array  # (S,) normalized, padded with zeros
    noise: Float32Array  # (H, A)


class PromptEncoder:
    """Encoder of instructions as Transformers' processor writes them: begin, text, end of line."""

    def __init__(self, path: Path, vocabulary: int, longest: int) -> None:
        """Read the tokenizer. Raise BadInputError if it is none, or has more tokens than the model."""
        with wrapping_errors(lambda error: _unreadable(path, error), OSError):
            self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        begin = self._tokenizer.token_to_id(_BOS)
        if begin is None:
            raise BadInputError(f"{TOKENIZER}: {path} has no token {_BOS}; name PaliGemma's tokenizer")
        self._begin, self._path, self._vocabulary, self._longest = begin, path, vocabulary, longest

    def encode(self, instruction: str) -> IntArray:
        """Return the tokens of an instruction. Raise InvalidRequestError if they are too many or the model has none."""
        text = self._tokenizer.encode(f"{instruction}\n", add_special_tokens=False).ids
        tokens = np.array([self._begin, *text], np.int64)
        if len(tokens) > self._longest:
            raise InvalidRequestError(
                f"the instruction takes {len(tokens)} tokens; policy_args.max_prompt_tokens allows {self._longest}"
            )
        if tokens.max() >= self._vocabulary:
            raise InvalidRequestError(
                f"{self._path} gives the token {tokens.max()}, and the model has {self._vocabulary}; see "
                "policy_args.tokenizer"
            )
        return tokens


class Preparation:
    """Preparation of requests. Thread-safe."""

    def __init__(
        self,
        encoder: PromptEncoder,
        scaling: PolicyScaling,
        staging: Staging,
        cameras: Sequence[str],
        state_dim: int,
        noise_shape: tuple[int, int],
        seed: int | None,
    ) -> None:
        """`seed` replaces the trial's for the noise alone."""
        self._encoder, self._scaling, self._staging, self._cameras = encoder, scaling, staging, cameras
        self._state_dim, self._noise_shape, self._seed = state_dim, noise_shape, seed

    def chunk(self, request: ChunkRequest) -> ReadyChunk:
        """Prepare a request. Raise InvalidRequestError for a NaN, a long instruction or a missing image."""
        if isinstance(request, ReadyChunk):
            return request
        state = self._state(request)
        return ReadyChunk(
            request.trial,
            request.chunk_index,
            request.observation,
            images=self._images(request),
            prompt=self._encoder.encode(request.trial.task.instruction),
            state=state,
            noise=self._noise(request),
        )

    def _state(self, request: ChunkRequest) -> Float32Array:
        proprio = np.asarray(request.observation.proprio)
        if proprio.shape != (PROPRIO_DIM,) or not np.isfinite(proprio).all():
            raise InvalidRequestError(
                f"the observation's proprio must be {PROPRIO_DIM} finite numbers, not {proprio.tolist()!r:.200}"
            )
        state = self._scaling.state(proprio)
        return np.pad(state, (0, self._state_dim - len(state)))

    def _images(self, request: ChunkRequest) -> StagedImages:
        missing = [role for role in self._cameras if role not in request.observation.images]
        if missing:
            raise InvalidRequestError(f"the observation has no image of the camera {missing[0]}")
        seen = [request.observation.images[role] for role in self._cameras]
        return self._staging.put(seen[0], seen[-1])

    def _noise(self, request: ChunkRequest) -> Float32Array:
        trial = request.trial if self._seed is None else replace(request.trial, seed=self._seed)
        generator = trial_generator(trial, _NOISE, request.chunk_index)
        return generator.standard_normal(self._noise_shape).astype(np.float32)


def _unreadable(path: Path, error: Exception) -> BadInputError:
    reason = " ".join(str(error).split())[:200]
    return BadInputError(f"{TOKENIZER}: {path} is no tokenizer.json ({reason}); name PaliGemma's tokenizer")
