"""The Waypoint VLA: a VLM that plans waypoints and an action expert that fills the motion between them.

Nothing of an answer depends on the requests beside it in a batch except the rounding of matrix products, whose order of
summation follows a batch's shape. With `batching.deterministic` every batch is cut and padded to one shape: the answer
to a request is then the same to the bit whatever the batch, the order or the replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.action_expert import PROMPT_SIZES, ActionExpert
from wpray.models.batch_parts import BatchShape
from wpray.models.checkpoint import Checkpoint, open_action_expert, open_vlm
from wpray.models.config import GEMMAS, ActionExpertConfig, Precision, VlmConfig
from wpray.models.gemma import padded_size
from wpray.models.staging import Staging, fetch
from wpray.models.vlm import WaypointVLM
from wpray.policy.base import Sources
from wpray.policy.batch_shapes import PLAN, SEGMENT, BatchShapes, Kind, TraceOf, fixed_shapes
from wpray.policy.noise import flow_noise, noise_key
from wpray.policy.preparation import Noise, Preparation, ReadyPlan, ReadySegment, Request
from wpray.policy.prompt import PromptEncoder, TokenIds, find_tokenizer, load_tokenizer
from wpray.policy.statistics import DataSetStatistics, PolicyScaling, read_statistics
from wpray.policy.waypoint_spec import spec_of
from wpray.policy.waypoint_tokens import bin_centers
from wpray.types import (
    ACTION_DIM,
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


def build(config: Config, noise: Noise | None = None) -> WaypointVlaPolicy:
    """Loads both checkpoints of `config` and captures their graphs.

    Raises BadInputError for whatever is wrong with the files, or with the sizes that the config says they have.
    """
    assert config.vlm_checkpoint and config.ae_checkpoint and config.dataset_statistics_path  # the config's own rule
    vlm_file, vlm_config = open_vlm(config.vlm_checkpoint)
    expert_file, expert_config = open_action_expert(config.ae_checkpoint)
    check_sizes(config, vlm_config, expert_config)
    statistics = read_statistics(Path(config.dataset_statistics_path), config.task_suite, config.dataset_statistics_key)
    scaling = statistics.scaling(config.norm_type)
    encoder = _encoder(config, vlm_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs = config.torch_compile and device.type == "cuda"
    pool = torch.cuda.graph_pool_handle() if graphs else None  # the two models take turns
    weights, table = dict(vlm_file.tensors(device, config.vlm_precision)), vlm_file.table(config.vlm_precision)
    vlm = WaypointVLM(weights, table, vlm_config, encoder.header, graphs, pool)
    weights, table = dict(expert_file.tensors(device, config.precision)), expert_file.table(config.precision)
    expert = ActionExpert(weights, table, expert_config, graphs, pool)
    del weights  # and what it holds of what was fused
    policy = WaypointVlaPolicy(config, vlm, expert, encoder, scaling, noise or _own_noise)
    policy.files = (*vlm_file.files, *expert_file.files, statistics.path, _tokenizer(config))
    policy.sources = sources_of(config, {"vlm_checkpoint": vlm_file, "ae_checkpoint": expert_file}, statistics, scaling)
    if graphs:
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
        self.sources = Sources()
        self.gpu = torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else None
        self._vlm, self._expert, self._scaling = vlm, expert, scaling
        self._num_waypoints = config.num_waypoints
        largest = self.spec.max_batch_size
        self._deterministic = config.batching.deterministic
        self._plan_shapes = self._shapes(PLAN, self._trace_plan, config.vlm_precision)
        self._segment_shapes = self._shapes(SEGMENT, expert.trace, config.precision)
        # Two batches: the one that computes and the one that gathers meanwhile.
        self._staging = Staging(2 * largest, vlm.device)
        noise_shape = (expert.config.horizon, expert.config.action_dim)
        self._preparation = Preparation(encoder, scaling.proprio, noise, noise_shape, self._staging)

    def prepare(self, request: Request) -> Request:
        """Does for a request what needs no batch: tokens, noise, images. From any thread, while a batch computes.

        Raises InvalidRequestError if a proprio is not finite, a prompt too long or an image missing.
        """
        if isinstance(request, PlanRequest):
            return self._preparation.plan(request)
        return self._preparation.segment(request)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Waypoints for each request, and the actions of the first segment that its plan executes.

        Raises what `prepare` raises, of requests that have not been through it.
        """
        ready = [self._preparation.plan(request) for request in requests]
        images = self._staging.gather([request.images for request in ready])
        bins, durations = self._waypoints(images, [request.prompt for request in ready])
        plans = [
            WaypointPlan(self._wide(request.state), self._wide(bin_centers(own_bins)), own_durations)
            for request, own_bins, own_durations in zip(ready, bins, durations, strict=True)
        ]
        firsts = self._first_segments(ready, images, plans)
        return [PlanReply(plan, first) for plan, first in zip(plans, firsts, strict=True)]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """The actions of each segment. Raises what `prepare` raises, of requests that have not been through it."""
        ready = [self._preparation.segment(request) for request in requests]
        images = self._staging.gather([request.images for request in ready])
        starts = np.stack([request.start for request in ready])
        ends = np.stack([request.end for request in ready])
        durations = np.array([request.duration for request in ready])
        return [SegmentReply(Segment(chunk)) for chunk in self._actions(ready, images, starts, ends, durations)]

    def capture(self) -> None:
        """Runs every batch shape once, the largest first, so that no episode waits for a graph to be captured."""
        torch.cuda.empty_cache()  # what loading took
        for shapes, trace, prompt_size in (
            (self._plan_shapes, self._trace_plan, self._vlm.prompt_size(1)),
            (self._segment_shapes, self._expert.trace, PROMPT_SIZES[0]),
        ):
            found = shapes.of(prompt_size)  # runs them all where an answer may not depend on its batch
            for shape in () if self._deterministic else reversed(found):
                for count in {shape.rows, *(shape.reads if shape is found[-1] else ())}:
                    trace(0, min(count, shape.rows), shape, prompt_size)
        torch.cuda.empty_cache()  # what the runs before the captures took

    @property
    def plan_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are worth filling."""
        return self._plan_shapes.sizes(self._vlm.prompt_size(1), self.spec.max_batch_size)

    @property
    def segment_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are worth filling."""
        return self._segment_shapes.sizes(PROMPT_SIZES[0], self.spec.max_batch_size)

    def _shapes(self, kind: Kind, trace: TraceOf, precision: Precision) -> BatchShapes:
        most = self.spec.max_batch_size
        if not self._deterministic:
            return BatchShapes(kind.up_to(most))
        return fixed_shapes(kind, trace, precision, most, gpu=self._vlm.device.type == "cuda")

    def _trace_plan(self, start: int, stop: int, shape: BatchShape, prompt_size: int) -> torch.Tensor:
        return self._vlm.trace(start, stop, shape, prompt_size, self._num_waypoints)

    def _waypoints(self, images: torch.Tensor, prompts: Sequence[TokenIds]) -> tuple[IntArray, IntArray]:
        """Bins (B, M, 8) and durations (B, M)."""
        bins = np.empty((len(prompts), self._num_waypoints, PROPRIO_DIM), np.int64)
        durations = np.empty((len(prompts), self._num_waypoints), np.int64)
        sizes = [self._vlm.prompt_size(len(prompt)) for prompt in prompts]
        for rows, shape in self._plan_shapes.cut(sizes):
            output = self._vlm.plan(images[rows], [prompts[row] for row in rows], self._num_waypoints, shape=shape)
            bins[rows], durations[rows] = fetch(output.bins), fetch(output.durations)
        return bins, durations

    def _first_segments(
        self, requests: Sequence[ReadyPlan], images: torch.Tensor, plans: Sequence[WaypointPlan]
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
        requests: Sequence[ReadyPlan] | Sequence[ReadySegment],
        images: torch.Tensor,
        starts: Float32Array,
        ends: Float32Array,
        durations: IntArray,
    ) -> list[FloatArray]:
        """Executable actions (H, 7) of each segment."""
        prompts = [request.action_prompt for request in requests]
        noise = np.stack([request.noise for request in requests])
        chunks = np.empty_like(noise)
        sizes = [padded_size(len(prompt), PROMPT_SIZES) for prompt in prompts]
        for rows, shape in self._segment_shapes.cut(sizes):
            given = (starts[rows], ends[rows], np.minimum(durations, self._expert.config.horizon)[rows])
            chunks[rows] = self._flow(images[rows], [prompts[row] for row in rows], *given, noise[rows], shape)
        return [self._executable(chunk) for chunk in chunks]

    def _flow(
        self,
        images: torch.Tensor,
        prompts: Sequence[TokenIds],
        starts: Float32Array,
        ends: Float32Array,
        durations: IntArray,
        noise: Float32Array,
        shape: BatchShape,
    ) -> Float32Array:
        start, end, duration, first = (
            torch.from_numpy(np.ascontiguousarray(array)) for array in (starts, ends, durations, noise)
        )
        return fetch(self._expert.act(images, prompts, start, end, duration, first, shape))

    def _executable(self, chunk: Float32Array) -> FloatArray:
        """Normalized actions (H, D) -> environment actions (H, 7); the model's gripper is 0 closed, 1 open."""
        actions = self._scaling.action.denormalize(chunk[:, :ACTION_DIM]).astype(np.float64)
        actions[:, -1] = -np.sign(2 * chunk[:, ACTION_DIM - 1].astype(np.float64) - 1)
        return actions

    def _wide(self, values: Float32Array) -> Float32Array:
        """(..., 8) zero-padded to the action expert's width."""
        missing = self._expert.config.action_dim - values.shape[-1]
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def _own_noise(request: Request, shape: tuple[int, ...]) -> Float32Array:
    return flow_noise(noise_key(request), shape)


def _encoder(config: Config, vlm_file: Checkpoint) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(_tokenizer(config), small=vlm_file.synthetic), config.max_token_len)


def _tokenizer(config: Config) -> Path:
    assert config.vlm_checkpoint and config.ae_checkpoint
    path = Path(config.tokenizer_path) if config.tokenizer_path else None
    return find_tokenizer(path, [Path(config.vlm_checkpoint), Path(config.ae_checkpoint)])


def sources_of(
    config: Config, checkpoints: Mapping[str, Checkpoint], statistics: DataSetStatistics, scaling: PolicyScaling
) -> Sources:
    """Return what was taken from a policy's files; `checkpoints` by the setting that names each."""
    facts = {setting: checkpoint.facts for setting, checkpoint in checkpoints.items()}
    unusual = {setting: checkpoint.describe() for setting, checkpoint in checkpoints.items()}
    return Sources(
        {**facts, "dataset_statistics": {**statistics.facts, "sha256": scaling.digest}},
        (
            *(f"{setting}: {checkpoints[setting].path}: {text}" for setting, text in unusual.items() if text),
            f"{statistics.describe(config.task_suite)}, numbers {scaling.digest[:16]}",
        ),
        # A run that joins no cluster has warned already, when it checked its machine.
        (statistics.describe(config.task_suite),) if config.ray.address is not None and not statistics.fits else (),
    )


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
