"""Preparation of requests before their batch, so that the GPU does not wait for it.

The thread that receives a request prepares it while another batch computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wpray.errors import InvalidRequestError
from wpray.models.staging import StagedImages, Staging
from wpray.policies.waypoint_vla.prompt import PromptEncoder, TokenIds
from wpray.types import PROPRIO_DIM, Float32Array, Observation, PlanRequest, SegmentRequest, WaypointRequest

NoiseOf = Callable[[WaypointRequest, tuple[int, ...]], Float32Array]
BiasOf = Callable[[PlanRequest], Float32Array | None]
StateOf = Callable[[WaypointRequest], Float32Array]


@dataclass(frozen=True, slots=True)
class ReadyPlan(PlanRequest):
    """Plan request in the models' form, including its first segment."""

    images: StagedImages
    state: Float32Array  # (8,) normalized proprio, or (7,) pose and gripper
    prompt: TokenIds
    action_prompt: TokenIds
    noise: Float32Array  # (H, D)
    bias: Float32Array | None = None  # (M, S) of a planner that samples


@dataclass(frozen=True, slots=True)
class ReadySegment(SegmentRequest):
    """Segment request in the action expert's form."""

    images: StagedImages
    begin: Float32Array  # (D,) normalized start of the segment
    action_prompt: TokenIds
    noise: Float32Array  # (H, D)


class Preparation:
    """Preparation of requests: tokens, normalization, noise and staged images. Thread-safe."""

    def __init__(
        self,
        encoder: PromptEncoder,
        state: StateOf,
        noise: NoiseOf,
        noise_shape: tuple[int, int],
        staging: Staging,
        bias: BiasOf = lambda _: None,
    ) -> None:
        """`state` turns a request's proprio (8,) into the state in the planner's prompt; `bias` returns a plan's."""
        self._bias = bias
        self._encoder, self._state, self._staging = encoder, state, staging
        self._noise, self._noise_shape = noise, noise_shape

    def plan(self, request: PlanRequest) -> ReadyPlan:
        """Prepare a plan request. Raise InvalidRequestError for a NaN, a long prompt or a missing image."""
        if isinstance(request, ReadyPlan):
            return request
        _check_proprio(request.observation)
        instruction, state = request.trial.task.instruction, self._state(request)
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
        """Prepare a segment request. Raise InvalidRequestError for a NaN, a long prompt or a missing image."""
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
        state = self._state(request)
        return np.pad(state, (0, self._noise_shape[1] - len(state)))

    def _images(self, request: WaypointRequest) -> StagedImages:
        seen = request.observation
        if seen.base_image is None or seen.wrist_image is None:
            raise InvalidRequestError("the observation has no images")
        return self._staging.put(seen.base_image, seen.wrist_image)


def _check_proprio(seen: Observation) -> None:
    """Raise InvalidRequestError for values that are not finite, also where a constant dimension would hide them."""
    proprio = np.asarray(seen.proprio)
    if proprio.shape != (PROPRIO_DIM,):
        raise InvalidRequestError(f"the observation's proprio has shape {proprio.shape}, not ({PROPRIO_DIM},)")
    if not np.isfinite(proprio).all():
        raise InvalidRequestError(f"the observation's proprio is not finite: {proprio.tolist()}")
