"""The Waypoint VLA: a VLM that plans waypoints and an action expert that fills the motion between them.

Nothing of an answer depends on the requests beside it in a batch except the rounding of matrix products, whose order of
summation follows a batch's shape. With `batching.deterministic` every batch is padded to one fixed shape: the answer to
a request is then the same to the bit whatever the batch, the order or the replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.action_expert import PROMPT_SIZES, ActionExpert
from wpray.models.checkpoint import Checkpoint, open_action_expert, open_vlm
from wpray.models.config import GEMMAS, ActionExpertConfig, VlmConfig
from wpray.models.gemma import padded_size
from wpray.models.vlm import WaypointVLM
from wpray.policy.base import PolicySpec
from wpray.policy.batch_shapes import BatchShapes
from wpray.policy.noise import flow_noise, noise_key
from wpray.policy.prompt import PromptEncoder, TokenIds, find_tokenizer, load_tokenizer
from wpray.policy.statistics import PolicyScaling, load_scaling
from wpray.policy.waypoint_tokens import bin_centers
from wpray.types import (
    ACTION_DIM,
    POLICY_IMAGE_SIZE,
    PROPRIO_DIM,
    Float32Array,
    FloatArray,
    IntArray,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    WaypointPlan,
    first_executable,
)

Request = PlanRequest | SegmentRequest
Noise = Callable[[Request, tuple[int, ...]], Float32Array]


def spec_of(config: Config) -> PolicySpec:
    """Camera images and a GPU."""
    return PolicySpec("waypoint_vla", True, False, num_gpus=1, max_batch_size=config.batching.max_batch_size)


def build(config: Config, noise: Noise | None = None) -> WaypointVlaPolicy:
    """Loads both checkpoints of `config` and captures their graphs.

    Raises BadInputError for whatever is wrong with the files, or with the sizes that the config says they have.
    """
    assert config.vlm_checkpoint and config.ae_checkpoint and config.dataset_statistics_path  # the config's own rule
    vlm_file, vlm_config = open_vlm(config.vlm_checkpoint)
    expert_file, expert_config = open_action_expert(config.ae_checkpoint)
    check_sizes(config, vlm_config, expert_config)
    scaling = load_scaling(Path(config.dataset_statistics_path), config.norm_type, config.task_suite)
    encoder = _encoder(config, vlm_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vlm = WaypointVLM(
        dict(vlm_file.tensors(device, config.vlm_precision)), vlm_config, encoder.header, config.torch_compile
    )
    expert = ActionExpert(
        dict(expert_file.tensors(device, config.precision)), expert_config, graphs=config.torch_compile
    )
    policy = WaypointVlaPolicy(config, vlm, expert, encoder, scaling, noise or _own_noise)
    policy.files = (vlm_file.path, expert_file.path, Path(config.dataset_statistics_path), _tokenizer(config))
    if device.type == "cuda" and config.torch_compile:
        policy.capture()
    return policy


class WaypointVlaPolicy:
    """Implements Policy. Not thread-safe: one batch at a time."""

    def __init__(
        self,
        config: Config,
        vlm: WaypointVLM,
        expert: ActionExpert,
        encoder: PromptEncoder,
        scaling: PolicyScaling,
        noise: Noise,
    ) -> None:
        """`noise` gives a request's initial flow noise of a shape."""
        self.spec = spec_of(config)
        self.files: tuple[Path, ...] = ()  # what it was loaded from
        self._vlm, self._expert, self._encoder, self._scaling = vlm, expert, encoder, scaling
        self._noise = noise
        self._num_waypoints = config.num_waypoints
        self._shapes = BatchShapes(config.batching.max_batch_size, config.batching.deterministic)
        # Page-locked memory is copied to a GPU twice as fast.
        self._staged = torch.empty(
            (config.batching.max_batch_size, 2, POLICY_IMAGE_SIZE, POLICY_IMAGE_SIZE, 3),
            dtype=torch.uint8,
            pin_memory=vlm.device.type == "cuda",
        )
        self._staged_array = self._staged.numpy()  # the same memory

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Waypoints for each request, and the actions of the first segment that its plan executes.

        Raises ValueError if a proprio is not finite or a prompt too long.
        """
        images = self._images(requests)
        states = [self._scaling.proprio.normalize(request.observation.proprio) for request in requests]
        prompts = [
            self._encoder.plan(request.trial.task.instruction, state)
            for request, state in zip(requests, states, strict=True)
        ]
        bins, durations = self._waypoints(images, prompts)
        plans = [
            WaypointPlan(self._wide(state), self._wide(bin_centers(own_bins)), own_durations)
            for state, own_bins, own_durations in zip(states, bins, durations, strict=True)
        ]
        firsts = self._first_segments(requests, images, plans)
        return [PlanReply(plan, first) for plan, first in zip(plans, firsts, strict=True)]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """The actions of each segment. Raises ValueError if a prompt is too long."""
        starts = np.stack([request.start for request in requests])
        ends = np.stack([request.end for request in requests])
        durations = np.array([request.duration for request in requests])
        chunks = self._actions(requests, self._images(requests), starts, ends, durations)
        return [SegmentReply(Segment(chunk)) for chunk in chunks]

    def capture(self) -> None:
        """Runs every batch shape once, the largest first, so that no episode waits for a graph to be captured."""
        prompt = [(0,) * PROMPT_SIZES[0]]  # as short as prompts of known tasks are
        for size in self._shapes.plan_sizes:
            self._waypoints(self._staged[:1].to(self._vlm.device).expand(size, -1, -1, -1, -1), prompt * size)
        dim = self._expert.config.action_dim
        for size in self._shapes.segment_sizes:
            images = self._staged[:1].to(self._vlm.device).expand(size, -1, -1, -1, -1)
            ends, noise = np.zeros((size, dim), np.float32), self._empty_noise(size)
            self._flow(images, prompt * size, ends, ends, np.ones(size, np.int64), noise)

    def _waypoints(self, images: torch.Tensor, prompts: Sequence[TokenIds]) -> tuple[IntArray, IntArray]:
        """Bins (B, M, 8) and durations (B, M)."""
        bins = np.empty((len(prompts), self._num_waypoints, PROPRIO_DIM), np.int64)
        durations = np.empty((len(prompts), self._num_waypoints), np.int64)
        sizes = [self._vlm.prompt_size(len(prompt)) for prompt in prompts]
        for rows, padded in self._shapes.plans(sizes):
            output = self._vlm.plan(images[padded], [prompts[row] for row in padded], self._num_waypoints)
            bins[rows] = output.bins[: len(rows)].cpu().numpy()
            durations[rows] = output.durations[: len(rows)].cpu().numpy()
        return bins, durations

    def _first_segments(
        self, requests: Sequence[PlanRequest], images: torch.Tensor, plans: Sequence[WaypointPlan]
    ) -> list[Segment | None]:
        """They see what the plan saw, so they are computed in the same visit; None for a plan that executes nothing."""
        segments: list[Segment | None] = [None] * len(plans)
        first = {
            row: index for row, plan in enumerate(plans) if (index := first_executable(plan.durations)) is not None
        }
        if not first:
            return segments
        rows = list(first)
        starts = np.stack([plans[row].start for row in rows])
        ends = np.stack([plans[row].waypoints[index] for row, index in first.items()])
        durations = np.array([plans[row].durations[index] for row, index in first.items()])
        chunks = self._actions([requests[row] for row in rows], images[rows], starts, ends, durations)
        for row, chunk in zip(rows, chunks, strict=True):
            segments[row] = Segment(chunk)
        return segments

    def _actions(
        self,
        requests: Sequence[Request],
        images: torch.Tensor,
        starts: Float32Array,
        ends: Float32Array,
        durations: IntArray,
    ) -> list[FloatArray]:
        """Executable actions (H, 7) of each segment."""
        prompts = [self._encoder.act(request.trial.task.instruction) for request in requests]
        shape = self._empty_noise(1).shape[1:]
        noise = np.stack([self._noise(request, shape) for request in requests])
        chunks = np.empty_like(noise)
        sizes = [padded_size(len(prompt), PROMPT_SIZES) for prompt in prompts]
        for rows, padded in self._shapes.segments(sizes):
            given = (starts[padded], ends[padded], np.minimum(durations, self._expert.config.horizon)[padded])
            chunks[rows] = self._flow(images[padded], [prompts[row] for row in padded], *given, noise[padded])[
                : len(rows)
            ]
        return [self._executable(chunk) for chunk in chunks]

    def _flow(
        self,
        images: torch.Tensor,
        prompts: Sequence[TokenIds],
        starts: Float32Array,
        ends: Float32Array,
        durations: IntArray,
        noise: Float32Array,
    ) -> Float32Array:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (starts, ends, durations, noise)]
        result: Float32Array = self._expert.act(images, prompts, *tensors).cpu().numpy()
        return result

    def _executable(self, chunk: Float32Array) -> FloatArray:
        """Normalized actions (H, D) -> environment actions (H, 7); the model's gripper is 0 closed, 1 open."""
        actions = self._scaling.action.denormalize(chunk[:, :ACTION_DIM]).astype(np.float64)
        actions[:, -1] = -np.sign(2 * chunk[:, ACTION_DIM - 1].astype(np.float64) - 1)
        return actions

    def _images(self, requests: Sequence[Request]) -> torch.Tensor:
        """(B, 2, 224, 224, 3) uint8 on the device."""
        staged = self._staged_array
        for row, request in enumerate(requests):
            seen = request.observation
            if seen.base_image is None or seen.wrist_image is None:
                raise ValueError("the observation has no images")
            staged[row, 0], staged[row, 1] = seen.base_image, seen.wrist_image
        return self._staged[: len(requests)].to(self._vlm.device, non_blocking=True)

    def _wide(self, values: Float32Array) -> Float32Array:
        """(..., 8) zero-padded to the action expert's width."""
        missing = self._expert.config.action_dim - values.shape[-1]
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])

    def _empty_noise(self, size: int) -> Float32Array:
        return np.zeros((size, self._expert.config.horizon, self._expert.config.action_dim), np.float32)


def _own_noise(request: Request, shape: tuple[int, ...]) -> Float32Array:
    return flow_noise(noise_key(request), shape)


def _encoder(config: Config, vlm_file: Checkpoint) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(_tokenizer(config), small=vlm_file.synthetic), config.max_token_len)


def _tokenizer(config: Config) -> Path:
    assert config.vlm_checkpoint and config.ae_checkpoint
    path = Path(config.tokenizer_path) if config.tokenizer_path else None
    return find_tokenizer(path, [Path(config.vlm_checkpoint), Path(config.ae_checkpoint)])


def check_sizes(config: Config, vlm: VlmConfig, expert: ActionExpertConfig) -> None:
    """What the config says of the models must be what the files hold. Raises BadInputError naming the field."""
    found: dict[str, list[object]] = {
        "paligemma_variant": [name for name, size in GEMMAS.items() if size == vlm.text == expert.text],
        "action_expert_variant": [name for name, size in GEMMAS.items() if size == expert.expert],
        "model_action_dim": [expert.action_dim],
        "model_proprio_dim": [expert.action_dim],
        "horizon_steps": [expert.horizon],
    }
    for name, right in found.items():
        if getattr(config, name) not in right:
            said = getattr(config, name)
            raise BadInputError(f"{name}: {said!r} is not what the checkpoints hold ({right or 'two sizes'})")
