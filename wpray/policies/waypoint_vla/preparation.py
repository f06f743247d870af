"""What can be done for a request before its batch: nothing of it keeps the GPU waiting.

Whoever brings a request does this in its own thread, while another batch computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wpray.errors import InvalidRequestError
from wpray.models.staging import StagedImages, Staging
from wpray.policies.waypoint_vla.prompt import PromptEncoder, TokenIds
from wpray.types import PROPRIO_DIM, Float32Array, FloatArray, Observation, PlanRequest, SegmentRequest

Request = PlanRequest | SegmentRequest
Noise = Callable[[Request, tuple[int, ...]], Float32Array]
Bias = Callable[[PlanRequest], Float32Array | None]
State = Callable[[FloatArray], Float32Array]


@dataclass(frozen=True, slots=True)
class ReadyPlan(PlanRequest):
    """A plan request as the models take it, its first segment included."""

    images: StagedImages
    state: Float32Array  # (8,) normalized proprio; or 6 of it and the gripper
    prompt: TokenIds
    action_prompt: TokenIds
    noise: Float32Array  # (H, D)
    bias: Float32Array | None = None  # (M, S) of a planner that samples


@dataclass(frozen=True, slots=True)
class ReadySegment(SegmentRequest):
    """A segment request as the action expert takes it."""

    images: StagedImages
    begin: Float32Array  # (D,) normalized, where the segment starts
    action_prompt: TokenIds
    noise: Float32Array  # (H, D)


class Preparation:
    """Tokenizes, normalizes, draws noise and stages images. Thread-safe."""

    def __init__(
        self,
        encoder: PromptEncoder,
        state: State,
        noise: Noise,
        noise_shape: tuple[int, int],
        staging: Staging,
        bias: Bias = lambda _: None,
    ) -> None:
        """`state` turns observed proprio (8,) into what the planner's prompt says; `bias` is a plan's own."""
        self._bias = bias
        self._encoder, self._state, self._staging = encoder, state, staging
        self._noise, self._noise_shape = noise, noise_shape

    def plan(self, request: PlanRequest) -> ReadyPlan:
        """Raises InvalidRequestError if a proprio is not finite, a prompt too long or an image missing."""
        if isinstance(request, ReadyPlan):
            return request
        _check_proprio(request.observation)
        instruction, state = request.trial.task.instruction, self._state(request.observation.proprio)
        return ReadyPlan(
            request.trial,
            request.plan_index,
            request.segment_index,
            request.observation,
            images=self._images(request),
            state=state,
            prompt=self._encoder.plan(instruction, state),
            action_prompt=self._encoder.act(instruction),
            noise=self._noise(request, self._noise_shape),
            bias=self._bias(request),
        )

    def segment(self, request: SegmentRequest) -> ReadySegment:
        """Raises InvalidRequestError if a proprio is not finite, a prompt too long or an image missing."""
        if isinstance(request, ReadySegment):
            return request
        _check_proprio(request.observation)
        return ReadySegment(
            request.trial,
            request.plan_index,
            request.segment_index,
            request.observation,
            request.start,
            request.end,
            request.duration,
            images=self._images(request),
            begin=self._begin(request),
            action_prompt=self._encoder.act(request.trial.task.instruction),
            noise=self._noise(request, self._noise_shape),
        )

    def _begin(self, request: SegmentRequest) -> Float32Array:
        if request.start is not None:
            return request.start
        state = self._state(request.observation.proprio)
        return np.pad(state, (0, self._noise_shape[1] - len(state)))

    def _images(self, request: Request) -> StagedImages:
        seen = request.observation
        if seen.base_image is None or seen.wrist_image is None:
            raise InvalidRequestError("the observation has no images")
        return self._staging.put(seen.base_image, seen.wrist_image)


def _check_proprio(seen: Observation) -> None:
    """Raise InvalidRequestError where normalization would fail, or hide it: a constant dimension becomes 0."""
    proprio = np.asarray(seen.proprio)
    if proprio.shape != (PROPRIO_DIM,):
        raise InvalidRequestError(f"the observation's proprio has shape {proprio.shape}, not ({PROPRIO_DIM},)")
    if not np.isfinite(proprio).all():
        raise InvalidRequestError(f"the observation's proprio is not finite: {proprio.tolist()}")
