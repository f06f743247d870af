"""Waypoint VLA: a VLM that plans waypoints, and an action expert that fills the motion between them.

Other requests of a batch affect an answer only by the rounding of matrix products, whose order of summation follows the
batch's shape. With `batching.deterministic`, every batch is split and padded to shapes that give the same bits, so an
answer does not depend on the batch, the order or the replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wpray.config import Config
from wpray.models.action_expert import PROMPT_SIZES, ActionExpert
from wpray.models.batch_parts import BatchShape
from wpray.models.config import Precision
from wpray.models.gemma import padded_size
from wpray.models.loading import Computing, load
from wpray.models.memory import gpu_memory
from wpray.models.reference_noise import episode_seed, segment_noise
from wpray.models.sampling import Sampling
from wpray.models.spans import Span
from wpray.models.staging import Staging, fetch, fetch_later, rows_of
from wpray.models.vlm import WaypointVLM
from wpray.policies.base import Sources, StepwisePlans
from wpray.policies.batch_shapes import BatchShapes, RequestKind, TraceOf, fixed_shapes
from wpray.policies.waypoint_vla.model_files import (
    head_precision,
    open_files,
    planner_precision,
    sources_of,
    tokenizer_path,
)
from wpray.policies.waypoint_vla.noise import flow_noise, noise_key, planner_generator
from wpray.policies.waypoint_vla.plans_under_way import PlansUnderWay, PlanUnderWay
from wpray.policies.waypoint_vla.preparation import NoiseOf, Preparation, ReadyPlan, ReadySegment
from wpray.policies.waypoint_vla.prompt import PromptEncoder, TokenIds, load_tokenizer
from wpray.policies.waypoint_vla.request_kinds import PLAN, SEGMENT
from wpray.policies.waypoint_vla.spec import spec_of
from wpray.policies.waypoint_vla.statistics import PolicyScaling
from wpray.policies.waypoint_vla.suite_statistics import SuiteScalings
from wpray.types import (
    ACTION_DIM,
    Float32Array,
    FloatArray,
    IntArray,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Timing,
    WaypointPlan,
    WaypointRequest,
    first_executable,
)


def build(config: Config, noise: NoiseOf | None = None) -> WaypointVlaPolicy:
    """Load the checkpoints of `config` and capture their graphs.

    Raise BadInputError if a file is wrong or its sizes do not match the config.
    """
    files = open_files(config)
    tokenizer = tokenizer_path(config)
    sentences = load_tokenizer(tokenizer, small=files.models.vlm.synthetic)
    encoder = PromptEncoder(sentences, files.models.tokens, config.longest_plan_prompt)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs = config.torch_compile and device.type == "cuda"
    pool = torch.cuda.graph_pool_handle() if graphs else None  # shared, because the two models run in turn
    head = head_precision(config, files.models)
    how = Computing(
        config.precision,
        planner_precision(config),
        head,
        graphs=graphs,
        device=device,
        pool=pool,
        sampling=_sampling(config),
    )
    vlm, expert = load(files.models, encoder.header, how)
    policy = WaypointVlaPolicy(config, vlm, expert, encoder, files.scalings, noise or _own_noise(config))
    policy.files = (*files.models.files, next(iter(files.statistics.values())).path, tokenizer)
    policy.sources = sources_of(config, files)
    if graphs:
        policy.capture()
    return policy


@dataclass(frozen=True, slots=True)
class Goals:
    """Segments to compute; D is the action expert's width."""

    requests: Sequence[ReadyPlan | ReadySegment]
    seen: torch.Tensor  # images (B, 2, 224, 224, 3) uint8 on the device, or their features
    starts: Float32Array  # (B, D)
    ends: Float32Array  # (B, D)
    durations: IntArray  # (B,) control steps

    def of(self, rows: Sequence[int]) -> Goals:
        """Return those of some rows."""
        chosen = list(rows)
        return Goals(
            [self.requests[row] for row in chosen],
            rows_of(self.seen, chosen),
            self.starts[chosen],
            self.ends[chosen],
            self.durations[chosen],
        )

    def __add__(self, other: Goals) -> Goals:
        """Return both, in order; both must have images or both features."""
        return Goals(
            [*self.requests, *other.requests],
            torch.cat([self.seen, other.seen]),
            np.concatenate([self.starts, other.starts]),
            np.concatenate([self.ends, other.ends]),
            np.concatenate([self.durations, other.durations]),
        )


class WaypointVlaPolicy:
    """Policy of the two models, for one batch at a time."""

    def __init__(
        self,
        config: Config,
        vlm: WaypointVLM,
        expert: ActionExpert,
        encoder: PromptEncoder,
        scalings: SuiteScalings,
        noise: NoiseOf,
    ) -> None:
        """Build the policy; `noise` returns the initial flow noise of a request in a shape."""
        self.spec = spec_of(config)
        self.files: tuple[Path, ...] = ()  # files that it was loaded from
        self.sources = Sources()
        self.gpu = torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else None
        self._vlm, self._expert, self._scalings = vlm, expert, scalings
        self._num_waypoints = config.num_waypoints
        largest = self.spec.max_batch_size
        self._deterministic = config.batching.deterministic
        self._plan_shapes = self._shapes(PLAN, self._trace_plan, planner_precision(config))
        self._segment_shapes = self._shapes(SEGMENT, expert.trace, config.precision)
        steps = vlm.decodes_in_steps and vlm.device.type == "cuda"  # a CPU takes plans one by one
        # Two batches: one that computes, and one that gathers meanwhile; a third one of plans under way.
        self._staging = Staging((3 if steps else 2) * largest, vlm.device)
        noise_shape = (expert.config.horizon, expert.config.action_dim)
        bias = partial(_bias, config, vlm)
        self._preparation = Preparation(encoder, self._state, noise, noise_shape, self._staging, bias)
        self.stepwise = self.in_steps() if steps else None

    def in_steps(self) -> StepwisePlans:
        """Return this policy's plans, decoded together although they do not start together."""
        return _StepwisePlans(self)

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the bytes that it takes of its GPU, and the free ones; None on a CPU."""
        return gpu_memory(self._vlm.device)

    def prepare(self, request: WaypointRequest) -> WaypointRequest:
        """Prepare tokens, noise and images of a request, in any thread, while a batch computes.

        Raise InvalidRequestError if a proprio is not finite, a prompt too long or an image missing.
        """
        if isinstance(request, PlanRequest):
            return self._preparation.plan(request)
        return self._preparation.segment(request)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Return waypoints for each request, and the actions of the first segment that its plan executes.

        Raise what `prepare` raises, for requests that are not prepared.
        """
        began = time.perf_counter()
        ready = [self._preparation.plan(request) for request in requests]
        images = self._staging.gather([request.images for request in ready])
        values, seen = self._waypoints(images, ready)
        plans = self._plans(ready, values)
        planned = time.perf_counter()
        rows, goals = self._first_goals(ready, seen, plans)
        chunks = self._actions(goals)
        timing = Timing(planner_s=planned - began, expert_s=time.perf_counter() - planned)
        return self._plan_replies(ready, plans, dict(zip(rows, chunks, strict=True)), timing)

    @property
    def space(self) -> PolicyScaling | None:
        """Space of all waypoints; None if suites have spaces of their own."""
        return self._scalings.default if self._scalings.agree else None

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """Return the actions of each segment. Raise what `prepare` raises, for requests that are not prepared."""
        began = time.perf_counter()
        chunks = self._actions(self._goals(requests))
        timing = Timing(expert_s=time.perf_counter() - began)
        return [SegmentReply(Segment(chunk), timing) for chunk in chunks]

    def capture(self) -> None:
        """Run the largest batches once, and what answers must agree with if they must not depend on their batch.

        Graphs of other shapes are captured when a batch first needs them, each in up to a second.
        """
        torch.cuda.empty_cache()  # release the memory that loading took
        for shapes, trace, prompt_size in (
            (self._plan_shapes, self._trace_plan, self._vlm.prompt_size(1)),
            (self._segment_shapes, self._expert.trace, PROMPT_SIZES[0]),
        ):
            most = self.spec.max_batch_size
            shape = shapes.of(prompt_size).of(most)
            trace(0, min(most, shape.rows), shape, prompt_size)
        torch.cuda.empty_cache()  # release the memory that the eager runs took

    @property
    def plan_sizes(self) -> tuple[int, ...]:
        """Batch sizes of plans that are worth filling."""
        return self._plan_shapes.sizes(self._vlm.prompt_size(1), self.spec.max_batch_size)

    @property
    def segment_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are worth filling."""
        return self._segment_shapes.sizes(PROMPT_SIZES[0], self.spec.max_batch_size)

    def _shapes(self, kind: RequestKind, trace: TraceOf, precision: Precision) -> BatchShapes:
        most = self.spec.max_batch_size
        if not self._deterministic:
            return BatchShapes(kind.up_to(most))
        return fixed_shapes(kind, trace, precision, most, gpu=self._vlm.device.type == "cuda")

    def _trace_plan(self, start: int, stop: int, shape: BatchShape, prompt_size: int) -> torch.Tensor:
        return self._vlm.trace(start, stop, shape, prompt_size, self._num_waypoints)

    def _waypoints(self, images: torch.Tensor, ready: Sequence[ReadyPlan]) -> tuple[IntArray, torch.Tensor]:
        """Return values (B, M, V), and the images of first segments, or their features from a shared backbone."""
        prompts = [request.prompt for request in ready]
        shared = self._vlm.backbone is self._expert.backbone
        values = np.empty((len(prompts), self._num_waypoints, len(self._vlm.layout.families)), np.int64)
        features: list[torch.Tensor | None] = [None] * len(prompts)
        sizes = [self._vlm.prompt_size(len(prompt)) for prompt in prompts]
        for rows, shape in self._plan_shapes.cut(sizes):
            own_prompts, bias = [prompts[row] for row in rows], _stacked([ready[row].bias for row in rows])
            output = self._vlm.plan(rows_of(images, rows), own_prompts, self._num_waypoints, shape=shape, bias=bias)
            values[rows] = fetch(output.values)
            for row, own in zip(rows, output.features, strict=True):
                features[row] = own
        return values, torch.stack([own for own in features if own is not None]) if shared else images

    def _plans(self, ready: Sequence[ReadyPlan], values: IntArray) -> list[WaypointPlan]:
        """Return the plans of sampled values (B, M, V)."""
        states = self._vlm.layout.states(values)
        return [
            WaypointPlan(self._wide(request.state), self._wide(own), own_values[:, -1])
            for request, own, own_values in zip(ready, states, values, strict=True)
        ]

    def _plan_replies(
        self,
        ready: Sequence[ReadyPlan],
        plans: Sequence[WaypointPlan],
        chunks: Mapping[int, FloatArray],
        timing: Timing,
    ) -> list[PlanReply]:
        """Return replies with first segments of `chunks` by number of the plan; a plan without executes nothing."""
        return [
            PlanReply(plan, Segment(chunks[row]) if row in chunks else None, timing, self._scaling(request))
            for row, (request, plan) in enumerate(zip(ready, plans, strict=True))
        ]

    def _first_goals(
        self, requests: Sequence[ReadyPlan], seen: torch.Tensor, plans: Sequence[WaypointPlan]
    ) -> tuple[list[int], Goals]:
        """Return the plans that execute something, and their first segments, which see the same images."""
        first = {
            row: index for row, plan in enumerate(plans) if (index := first_executable(plan.durations)) is not None
        }
        rows, width = list(first), self._expert.config.action_dim
        goals = Goals(
            [requests[row] for row in rows],
            rows_of(seen, rows),
            _rows([plans[row].start for row in rows], width),
            _rows([plans[row].waypoints[index] for row, index in first.items()], width),
            np.array([plans[row].durations[index] for row, index in first.items()], np.int64),
        )
        return rows, goals

    def _goals(self, requests: Sequence[SegmentRequest]) -> Goals:
        """Return segments as they are requested."""
        ready, width = [self._preparation.segment(request) for request in requests], self._expert.config.action_dim
        return Goals(
            ready,
            self._staging.gather([request.images for request in ready]),
            _rows([request.begin for request in ready], width),
            _rows([request.end for request in ready], width),
            np.array([request.duration for request in ready], np.int64),
        )

    def _actions(self, goals: Goals) -> list[FloatArray]:
        """Return executable actions (H, 7) of each segment."""
        return self._actions_later(goals)()

    def _actions_later(self, goals: Goals) -> Callable[[], list[FloatArray]]:
        """Begin to compute executable actions (H, 7) of each segment; return the function that waits for them."""
        prompts = [request.action_prompt for request in goals.requests]
        sizes = [padded_size(len(prompt), PROMPT_SIZES) for prompt in prompts]
        parts = [
            (rows, self._flow(goals.of(rows), [prompts[row] for row in rows], shape))
            for rows, shape in self._segment_shapes.cut(sizes)
        ]
        scalings = [self._scaling(request) for request in goals.requests]

        def wait() -> list[FloatArray]:
            chunks = {row: chunk for rows, values in parts for row, chunk in zip(rows, values(), strict=True)}
            return [_executable(chunks[row], scaling) for row, scaling in enumerate(scalings)]

        return wait

    def _flow(self, goals: Goals, prompts: Sequence[TokenIds], shape: BatchShape) -> Callable[[], Float32Array]:
        """Begin to compute normalized actions (B, H, D); return the function that waits for them."""
        noise = np.stack([request.noise for request in goals.requests])
        durations = np.minimum(goals.durations, self._expert.config.horizon)
        start, end, duration, first = (
            torch.from_numpy(np.ascontiguousarray(array)) for array in (goals.starts, goals.ends, durations, noise)
        )
        return fetch_later(self._expert.act(goals.seen, prompts, start, end, duration, first, shape))

    def _scaling(self, request: WaypointRequest) -> PolicyScaling:
        return self._scalings.of(request.trial.task.suite)

    def _state(self, request: WaypointRequest) -> Float32Array:
        return self._scaling(request).state(request.observation.proprio)

    def _wide(self, values: Float32Array) -> Float32Array:
        """Return states, zero-padded to the action expert's width."""
        missing = self._expert.config.action_dim - values.shape[-1]
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


class _StepwisePlans:
    """StepwisePlans of a policy: a step is a waypoint of every plan."""

    def __init__(self, policy: WaypointVlaPolicy) -> None:
        self._policy = policy
        self._shares = policy._vlm.backbone is policy._expert.backbone
        self._under_way = PlansUnderWay(policy._vlm, policy._plan_shapes, policy._num_waypoints, self._shares)

    @property
    def slots(self) -> int:
        """Number of plans that may be under way together."""
        return min(self._policy.spec.max_batch_size, self._under_way.slots(self._policy._vlm.prompt_size(1)))

    def start(self, requests: Sequence[PlanRequest]) -> list[PlanUnderWay]:
        """Read the requests' prompts and images."""
        ready = [self._policy._preparation.plan(request) for request in requests]
        images = self._policy._staging.gather([request.images for request in ready])
        return self._under_way.start(images, ready)

    def advance(self) -> list[PlanUnderWay]:
        """Decode a waypoint of every plan; return those that have all of theirs."""
        return self._under_way.advance()

    def answer(
        self, plans: Sequence[PlanUnderWay], segments: Sequence[SegmentRequest]
    ) -> Callable[[], tuple[list[PlanReply], list[SegmentReply]]]:
        """Begin to answer; first segments and requested ones are one batch, unless plans have features of images."""
        policy, ready = self._policy, [plan.request for plan in plans]
        values = [plan.values() for plan in plans if plan.values is not None]
        decoded = policy._plans(ready, np.stack(values)) if plans else []
        goals, rows = policy._goals(segments), list[int]()
        batches = [goals] if segments else []
        if plans:
            rows, firsts = policy._first_goals(ready, torch.stack([plan.seen for plan in plans]), decoded)
            batches = [firsts, *batches] if self._shares else [firsts + goals]
        span = Span(policy._vlm.device)
        waits = [policy._actions_later(batch) for batch in batches if batch.requests]
        span.end()

        def wait() -> tuple[list[PlanReply], list[SegmentReply]]:
            chunks = [chunk for own in waits for chunk in own()]
            timing = Timing(expert_s=span.seconds())
            firsts = dict(zip(rows, chunks[: len(rows)], strict=True))
            replies = policy._plan_replies(ready, decoded, firsts, timing)
            timed = [
                replace(reply, timing=replace(timing, planner_s=plan.planner_s))
                for plan, reply in zip(plans, replies, strict=True)
            ]
            return timed, [SegmentReply(Segment(chunk), timing) for chunk in chunks[len(rows) :]]

        return wait

    def clear(self) -> None:
        """Forget every plan under way."""
        self._under_way.clear()


def _rows(states: Sequence[Float32Array], width: int) -> Float32Array:
    """Return states as rows (B, width), also if there are none."""
    return np.stack(states) if states else np.empty((0, width), np.float32)


def _executable(chunk: Float32Array, scaling: PolicyScaling) -> FloatArray:
    """Return environment actions (H, 7) of normalized ones (H, D); the model's gripper is 0 closed, 1 open."""
    actions = scaling.action.denormalize(chunk[:, :ACTION_DIM]).astype(np.float64)
    actions[:, -1] = -np.sign(2 * chunk[:, ACTION_DIM - 1].astype(np.float64) - 1)
    return actions


def _sampling(config: Config) -> Sampling:
    return Sampling(config.temperature, config.forbid_terminal_first_waypoint)


def _bias(config: Config, vlm: WaypointVLM, request: PlanRequest) -> Float32Array | None:
    """Return the bias of a plan if the planner samples, which depends only on the request's key."""
    if not vlm.sampling.needs_bias:
        return None
    key = noise_key(request)
    generator = planner_generator(key if config.eval_seed is None else replace(key, seed=config.eval_seed))
    return vlm.sampling.bias(vlm.layout, config.num_waypoints, generator)


def _stacked(biases: Sequence[Float32Array | None]) -> torch.Tensor | None:
    given = [bias for bias in biases if bias is not None]
    return torch.from_numpy(np.stack(given)) if given else None


def _own_noise(config: Config) -> NoiseOf:
    """Return the noise that `config` selects."""

    def keyed(request: WaypointRequest, shape: tuple[int, ...]) -> Float32Array:
        key = noise_key(request)
        return flow_noise(key if config.eval_seed is None else replace(key, seed=config.eval_seed), shape)

    def reference(request: WaypointRequest, shape: tuple[int, ...]) -> Float32Array:
        assert config.eval_seed is not None  # guaranteed by the config
        seed = episode_seed(config.eval_seed, request.trial.task.task_id, request.trial.init_state)
        return fetch(segment_noise(seed, request.segment_index, shape))

    return reference if config.noise == "reference" else keyed
