"""Models of random weights of each layout, and the calls that a run makes of them.

A plan and its first segment are measured together, too, because a run computes them in one visit: a joint model then
computes the images' features once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from wpray.bench.policy_rates import DeviceRates
from wpray.models import loading
from wpray.models.action_expert import NUM_STEPS, PROMPT_SIZES, ActionExpert
from wpray.models.checkpoint import TABLES
from wpray.models.config import (
    IMAGE_TOKENS,
    ActionExpertConfig,
    BlockPlannerConfig,
    CheckpointLayout,
    ModelVariant,
    Precision,
    TensorManifest,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.models.loading import Computing
from wpray.models.staging import fetch
from wpray.models.token_layout import ANSWER_HEADER_IDS, BINS256, BINS300
from wpray.models.vlm import WaypointVLM
from wpray.policies.batch_shapes import BatchShapes, RequestKind, TraceOf, fixed_shapes
from wpray.policies.waypoint_vla.request_kinds import PLAN, SEGMENT

MeasuredCall = Literal["plan", "segment", "plan + segment"]

NUM_WAYPOINTS = 7
_PROMPT, _SHORT_PROMPT = 56, 20  # tokens of a LIBERO prompt, for the planner and the action expert
_DURATION = 16  # control steps of the segments


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Conditions that models of any layout are measured under."""

    variant: ModelVariant
    precision: Precision
    graphs: bool
    deterministic: bool
    batches: tuple[int, ...]
    device: torch.device


class MeasuredModels:
    """A planner and an action expert of one layout, with the batch shapes that a run would use."""

    def __init__(self, layout: CheckpointLayout, settings: BenchSettings) -> None:
        """Load random weights of the layout."""
        self._device, full = settings.device, settings.variant == "full"
        expert = ActionExpertConfig.full() if full else ActionExpertConfig.tiny()
        blocks = BlockPlannerConfig(BINS300.tokens_per_waypoint, NUM_WAYPOINTS) if layout == "block" else None
        self._config = expert if layout == "two" else replace(expert, duration_embed=True, planner=blocks)
        self.planner, self.expert = _load(layout, self._config, settings)
        self._plan_shapes = _shapes(settings, PLAN, self.planner.trace)
        self._segment_shapes = _shapes(settings, SEGMENT, self.expert.trace)

    @property
    def shares(self) -> bool:
        """Both models have one backbone."""
        return self.planner.backbone is self.expert.backbone

    def call(self, kind: MeasuredCall, batch: int) -> Callable[[], Any]:
        """Return what computes one batch, from images on the host to results on the host."""
        images, given = _images(batch, self._device), self._segment_inputs(batch)

        def arrive() -> torch.Tensor:
            return images.to(self._device, non_blocking=True)

        if kind == "plan":
            return lambda: self._plans(arrive())
        if kind == "segment":
            return lambda: self._segments(arrive(), given)
        return lambda: self._segments(self._plans(arrive()), given)

    def floor_s(self, kind: MeasuredCall, batch: int, rates: DeviceRates) -> float:
        """Return the least seconds of that call."""
        config, vision = self._config, rates.vision_s(self._config.vision, batch)
        ahead = 2 if not config.duration_embed else 3
        prefix = rates.gemma_s(config.text, batch * (2 * IMAGE_TOKENS + _SHORT_PROMPT))
        flow = NUM_STEPS * rates.gemma_s(config.expert, batch * (ahead + config.horizon))
        if kind == "segment":
            return vision + prefix + flow
        plan = vision + self._planning_floor_s(batch, rates)
        if kind == "plan":
            return plan
        return plan + prefix + flow + (0 if self.shares else vision)

    def _planning_floor_s(self, batch: int, rates: DeviceRates) -> float:
        layout, text = self.planner.layout, self._config.text
        first = 0 if self._config.planner else 1  # the first <wp> is read with the prompt
        prefix = rates.gemma_s(text, batch * (2 * IMAGE_TOKENS + _PROMPT + len(ANSWER_HEADER_IDS) + first))
        if self._config.planner is not None:
            return prefix + NUM_WAYPOINTS * rates.gemma_s(text, batch * layout.tokens_per_waypoint)
        passes = NUM_WAYPOINTS * len(layout.families) - 1  # the last value is not fed
        return prefix + passes * rates.gemma_s(text, batch)

    def _plans(self, images: torch.Tensor) -> torch.Tensor:
        """Return what first segments see: the images, or their features from a shared backbone."""
        prompts = [list(range(2, 2 + _PROMPT))] * len(images)
        features = []
        for rows, shape in self._plan_shapes.cut([self.planner.prompt_size(_PROMPT)] * len(images)):
            output = self.planner.plan(images[_slice(rows)], prompts[: len(rows)], NUM_WAYPOINTS, shape=shape)
            fetch(output.values)
            features.append(output.features)
        return torch.cat(features) if self.shares else images

    def _segment_inputs(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return start, end, duration and noise of each segment."""
        config, generator = self._config, torch.Generator().manual_seed(0)
        start, end = torch.rand(2, batch, config.action_dim, generator=generator)
        noise = torch.randn(batch, config.horizon, config.action_dim, generator=generator)
        return start, end, torch.full((batch,), _DURATION), noise

    def _segments(
        self, seen: torch.Tensor, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> None:
        prompts = [list(range(2, 2 + _SHORT_PROMPT))] * len(seen)
        for rows, shape in self._segment_shapes.cut([PROMPT_SIZES[0]] * len(seen)):
            own = _slice(rows)
            start, end, duration, noise = (tensor[own] for tensor in inputs)
            fetch(self.expert.act(seen[own], prompts[: len(rows)], start, end, duration, noise, shape))


def _slice(rows: list[int]) -> slice:
    """Return rows that follow each other, as those of prompts of one length do, as a slice: it copies nothing."""
    return slice(rows[0], rows[-1] + 1)


def random_weights(
    manifest: TensorManifest, precision: Precision, device: torch.device | str = "cuda"
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the tensors of a manifest on the device, and the embedding table on the host.

    They are in compute precision, and scaled so that activations keep their size.
    """
    torch.manual_seed(0)
    weights = {}
    for name, (shape, dtype) in manifest.items():
        kind = getattr(torch, dtype) if precision == "bfloat16" else torch.float32
        gain = 0.01 if "lm_head" in name else float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.02
        weights[name] = (torch.randn(shape, device=device) * gain).to(kind)
    (table,) = TABLES & manifest.keys()
    return weights, weights.pop(table).cpu()


def _load(
    layout: CheckpointLayout, config: ActionExpertConfig, settings: BenchSettings
) -> tuple[WaypointVLM, ActionExpert]:
    head: Precision = "bfloat16" if layout == "block" and settings.precision == "bfloat16" else "float32"
    graphs = settings.graphs and settings.device.type == "cuda"
    pool = torch.cuda.graph_pool_handle() if graphs else None  # the two models take turns
    how = Computing(settings.precision, settings.precision, head, graphs, settings.device, pool)
    expert = random_weights(action_expert_manifest(config, "bfloat16"), settings.precision, settings.device)
    if layout != "two":
        return loading.joint_models(*expert, config, BINS300, ANSWER_HEADER_IDS, how)
    size = VlmConfig(config.vision, config.text)
    vlm = random_weights(vlm_manifest(size, "bfloat16"), settings.precision, settings.device)
    return loading.vlm(*vlm, size, BINS256, ANSWER_HEADER_IDS, how), loading.action_expert(*expert, config, how)


def _shapes(settings: BenchSettings, kind: RequestKind, trace: TraceOf) -> BatchShapes:
    """Return the batch shapes that a run would use."""
    most = max(settings.batches)
    if not settings.deterministic:
        return BatchShapes(kind.up_to(most))
    return fixed_shapes(kind, trace, settings.precision, most, gpu=settings.device.type == "cuda")


def _images(batch: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 2, 224, 224, 3), dtype=torch.uint8, generator=generator)
    return images.pin_memory() if device.type == "cuda" else images
