"""Action expert: flow matching from noise to an action chunk between two waypoints.

A PaliGemma prefix reads images and instruction once, a batch in parts (batch_parts.py). Then ten Euler steps run a
narrower Gemma over 34 tokens (start, end, 32 noisy actions) that attends to the prefix's keys of the same layer. Flow
time and duration modulate its norms; in a variant, the duration is a token after the end instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import ops
from wpray.models.backbone import Backbone
from wpray.models.batch_invariance import fingerprints, synthetic_requests
from wpray.models.batch_parts import BatchShape, KvCaches, padded, read_parts
from wpray.models.config import IMAGE_TOKENS, MAX_DURATION, NUM_DURATIONS, ActionExpertConfig
from wpray.models.gemma import Modulation, aligned, bias_of, load_layers, padded_size, rope_tables
from wpray.models.graphs import GraphCache
from wpray.models.lora import project, take_weight
from wpray.models.staging import send

NUM_STEPS = 10
PROMPT_SIZES = (32, 64)  # prompts are padded to the next of these
_PERIODS = (4e-3, 4.0)


class ActionExpert:
    """Action expert on one device, for one caller at a time."""

    def __init__(
        self,
        backbone: Backbone,
        weights: dict[str, Tensor],
        config: ActionExpertConfig,
        graphs: bool,
        pool: Any = None,
        joint: bool = False,
    ) -> None:
        """Build the expert from `weights` as Checkpoint's `tensors` gives them; those that are fused are removed.

        `joint`: a planner shares the backbone. `graphs` captures on CUDA, in `pool` if one is given.
        """
        stem = "paligemma_with_expert.gemma_expert.model."
        self.config, self.backbone = config, backbone
        self.device, self._prefix, self._tokens = backbone.device, backbone.layers, backbone.tokens
        self._expert = load_layers(weights, stem, config.expert, adaptive=True)
        self._linear = {
            name: (weights[name + ".weight"], weights[name + ".bias"])
            for name in ("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out")
        }
        self._durations = weights["duration_embed.weight"] if config.duration_embed else None  # (34, width)
        self._ahead = 2 if self._durations is None else 3  # tokens before the actions
        self._counts_down = joint
        self._conditions = self._all_conditions()
        self._modulations = self._all_modulations(weights, stem)
        self.passed: dict[str, Tensor] | None = None  # set to a dict to collect what a flow's first step computes
        self._caches = KvCaches(config.text.depth, config.text.head_dim, self._tokens.rows)
        captured = graphs and self.device.type == "cuda"
        self._read: Callable[..., Any] = GraphCache(self._prefill, pool) if captured else self._prefill
        self._steps: Callable[..., Any] = GraphCache(self._flow, pool, shared=1) if captured else self._flow

    @torch.inference_mode()
    def act(
        self,
        seen: Tensor,
        prompts: Sequence[Sequence[int]],
        start: Tensor,
        end: Tensor,
        duration: Tensor,
        noise: Tensor,
        shape: BatchShape | None = None,
    ) -> Tensor:
        """Return normalized actions (B, 32, 32), float32.

        `seen`: images (B, 2, 224, 224, 3) uint8 [base, wrist], or their features from the same backbone; prompts of at
        most 64 ids (BOS first); start and end (B, 32); duration (B,) control steps, at most 33; noise (B, 32, 32)
        standard normal; `shape` to compute in (None: the batch's own). Raise ValueError for a longer prompt or
        duration, torch.cuda.OutOfMemoryError when the batch is too large.
        """
        if duration.min() < 0 or duration.max() > MAX_DURATION:
            raise ValueError(f"durations are 0 to {MAX_DURATION} control steps: {duration.tolist()}")
        given = (start.float(), end.float(), duration.long(), noise.float())
        actions = self._run(seen, prompts, given, shape or BatchShape.whole(len(prompts)))[1]
        return actions[: len(prompts)].clone()

    @torch.inference_mode()
    def trace(self, start: int, stop: int, shape: BatchShape, prompt_size: int = 32) -> Tensor:
        """Return fingerprints (B, pieces) of every value behind the answers to these synthetic requests."""
        images, prompts, values = synthetic_requests(
            start, stop, prompt_size, 2 + self.config.horizon, self.config.action_dim
        )
        given = (values[:, 0], values[:, 1], torch.arange(start, stop) % NUM_DURATIONS, values[:, 2:])
        cache, actions = self._run(images, prompts, given, shape)
        return fingerprints(*(part[: stop - start] for part in (*cache, actions)))

    def _run(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], given: Sequence[Tensor], shape: BatchShape
    ) -> tuple[Tensor, Tensor]:
        """Return the cache (depth, rows, slots, 2 D) and actions (rows, 32, 32) for start, end, duration and noise."""
        size = padded_size(max(map(len, prompts)), PROMPT_SIZES)
        rows = torch.tensor([[*row, *[0] * (size - len(row))] for row in self._tokens.places(prompts)])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        inputs = [send(tensor, self.device) for tensor in (rows, lengths, *given)]
        cache = self._caches.take(shape.rows, aligned(2 * IMAGE_TOKENS + size + self._ahead + self.config.horizon))
        (real,) = read_parts(self._read, shape, (self.backbone.features(seen, shape), *inputs[:2]), cache)
        return cache, self._steps(cache, real, *(padded(values, shape.rows) for values in inputs[1:]))

    def _flow(
        self,
        cache: Tensor,
        real: Tensor,
        lengths: Tensor,
        start: Tensor,
        end: Tensor,
        duration: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Run ten Euler steps from t = 1 to 0, after the prefixes in the cache (depth, B, slots, 2 D).

        `real` (B, S) are the visible slots of the prefix.
        """
        cos, sin, bias = self._suffix_mask(lengths, real)
        ahead = self._ahead_rows(start, end, duration)
        # A duration that is a token does not modulate the norms.
        condition = duration if self._durations is None else torch.zeros_like(duration)
        modulations = [[Modulation(*norm.unbind(1)) for norm in step] for step in self._modulations[:, :, condition]]
        x = noise
        for step in range(NUM_STEPS):
            velocity = self._velocity(x, ahead, modulations[step], cache, cos, sin, bias, real.shape[1])
            if self.passed is not None and step == 0:
                begins = torch.cat([ahead, self._apply("action_in_proj", x[:, :2])], dim=1)
                self.passed |= {"condition": self._conditions[0, condition], "suffix": begins, "velocity": velocity}
            x = x - (1.0 / NUM_STEPS) * velocity
        return x

    def _ahead_rows(self, start: Tensor, end: Tensor, duration: Tensor) -> Tensor:
        """Return the suffix's rows before the actions (B, 2 or 3, width), float32."""
        ends = self._apply("proprio_encoder", torch.stack([start, end], dim=1))
        if self._durations is None:
            return ends
        return torch.cat([ends, F.embedding(duration, self._durations)[:, None]], dim=1)

    def _prefill(self, seen: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys beside values (depth, B, S, 2 D) of image features and prompt, and a mask (B, S) of real ones."""
        batch, config = tokens.shape[0], self.config.text
        text = F.embedding(tokens, self._tokens.rows)
        x = torch.cat([seen, text], dim=1)
        slots = torch.arange(x.shape[1], device=self.device)
        real = slots < 2 * IMAGE_TOKENS + lengths[:, None]
        bias = bias_of(real)[:, None]
        cos, sin = rope_tables(slots.expand(batch, -1), config.head_dim)
        keys_values = x.new_empty((len(self._prefix), batch, x.shape[1], 2 * config.head_dim))
        branch = None
        for index, (layer, kv) in enumerate(zip(self._prefix, keys_values, strict=True)):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, cos, sin, config, kv)
            if index < len(self._prefix) - 1:  # because only keys and values of the last layer are read
                x, normed = ops.add_norm(x, project(ops.attend(q, kv, bias), layer.out), layer.norm_post)
                branch = ops.feed_forward(normed, layer.gate_up, layer.down)
        return keys_values, real

    def _suffix_mask(self, lengths: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the suffix's rotary tables and bias (B, T, S + T): tokens ahead see each other, actions see all."""
        count = self._ahead + self.config.horizon
        index = torch.arange(count, device=self.device)
        cos, sin = rope_tables(2 * IMAGE_TOKENS + lengths[:, None] + index, self.config.expert.head_dim)
        own = (index[None, :] < self._ahead) | (index[:, None] >= self._ahead)
        own = F.pad(own, (0, aligned(real.shape[1] + count) - real.shape[1] - count))
        allowed = torch.cat([real[:, None].expand(-1, count, -1), own.expand(len(real), -1, -1)], dim=2)
        return cos, sin, bias_of(allowed)

    @torch.inference_mode()
    def _all_modulations(self, weights: dict[str, Tensor], stem: str) -> Tensor:
        """Return scale, shift and gate of every flow step, norm and duration, (10, norms, 34, 3, width) float32.

        They depend on nothing else, so they are computed once; the norms' `weights` are removed. There is one duration
        if it is a token. Norms are ordered: before and after each layer's attention, then the final one.
        """
        layers = range(self.config.expert.depth)
        parts = ("input_layernorm", "post_attention_layernorm")
        names = [*(f"{stem}layers.{layer}.{part}.dense" for layer in layers for part in parts), f"{stem}norm.dense"]
        given = self._conditions
        every = [project(given, take_weight(weights, name), weights.pop(f"{name}.bias")) for name in names]
        return torch.stack(every, dim=1).view(NUM_STEPS, len(names), given.shape[1], 3, self.config.expert.width)

    @torch.inference_mode()
    def _all_conditions(self) -> Tensor:
        """Return the norms' condition of every flow step and duration, (10, 34, width) float32; (10, 1, width) where
        the duration is a token.
        """
        width, device = self.config.expert.width, self.device
        times = torch.tensor(self.times(), dtype=torch.float64)
        conditions = _sincos(times, width)[:, None]
        if self._durations is None:
            durations = torch.arange(NUM_DURATIONS, dtype=torch.float64) / MAX_DURATION
            grid = (NUM_STEPS, len(durations), width)
            conditions = torch.cat([conditions.expand(grid), _sincos(durations, width).expand(grid)], dim=-1)
        hidden = F.silu(self._apply("time_mlp_in", conditions.to(device)))
        return F.silu(self._apply("time_mlp_out", hidden))

    def times(self) -> list[float]:
        """Return the times of the flow's steps.

        References of joint models count them down in float32. The short periods of `_sincos` amplify its error a
        thousandfold.
        """
        if not self._counts_down:
            return [1.0 - step / NUM_STEPS for step in range(NUM_STEPS)]
        steps = np.full(NUM_STEPS, -1 / NUM_STEPS, np.float32)
        steps[0] = 1
        return [float(time) for time in np.cumsum(steps, dtype=np.float32)]

    def _velocity(
        self,
        x: Tensor,
        ahead: Tensor,
        modulations: list[Modulation],
        cache: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        prefix: int,
    ) -> Tensor:
        """Return the flow's velocity (B, 32, 32) at x, and write the suffix's slots of the cache."""
        config = self.config.expert
        tokens = torch.cat([ahead, self._apply("action_in_proj", x)], dim=1).to(cache.dtype)
        branch = gate = None
        for index, layer in enumerate(self._expert):
            before, after = modulations[2 * index], modulations[2 * index + 1]
            tokens, normed = ops.add_adaptive_norm(tokens, branch, gate, before)
            q = ops.queries(normed, layer.qkv, cos, sin, config, cache[index, :, prefix : prefix + tokens.shape[1]])
            seen = project(ops.attend(q, cache[index], bias), layer.out)
            tokens, normed = ops.add_adaptive_norm(tokens, seen, before.gate, after)
            branch, gate = ops.feed_forward(normed, layer.gate_up, layer.down), after.gate
        final = ops.add_adaptive_norm(tokens, branch, gate, modulations[-1])[1][:, -self.config.horizon :]
        return self._apply("action_out_proj", final)

    def _apply(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._linear[name]
        return ops.linear(x, weight, bias)


def _sincos(values: Tensor, width: int) -> Tensor:
    """Return (..., width) float32: sines, then cosines of 2 pi x / period, with geometric periods, in float64."""
    shortest, longest = _PERIODS
    fractions = torch.from_numpy(np.linspace(0.0, 1.0, width // 2)).to(values.device)
    periods = shortest * (longest / shortest) ** fractions
    angles = values.double()[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
