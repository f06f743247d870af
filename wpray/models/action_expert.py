"""The action expert: flow matching from noise to an action chunk between two waypoints.

A PaliGemma prefix reads images and instruction once, those of a batch in parts (batch_parts.py); then ten Euler steps
run a narrower Gemma over 34 tokens (start, end, 32 noisy actions) that attends to the prefix's keys of the same layer.
Its norms are modulated by the flow time and the duration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import ops
from wpray.models.batch_parts import BatchShape, KvCaches, padded, read_parts
from wpray.models.config import IMAGE_TOKENS, ActionExpertConfig
from wpray.models.gemma import Modulation, aligned, bias_of, load_layers, padded_size, rope_tables
from wpray.models.graphs import GraphCache
from wpray.models.same_bits import fingerprints, made_up
from wpray.models.siglip import Siglip
from wpray.models.stored_table import StoredTable
from wpray.models.token_rows import TokenRows

NUM_STEPS = 10
PROMPT_SIZES = (32, 64)  # prompts are padded to the next of these
_LONGEST = 33  # control steps of a duration, which is divided by it
_PERIODS = (4e-3, 4.0)


class ActionExpert:
    """A loaded action expert on one device. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        table: Tensor | StoredTable,
        config: ActionExpertConfig,
        graphs: bool,
        pool: Any = None,
    ) -> None:
        """`weights` and `table` as Checkpoint's `tensors` and `table` give them; what is fused is taken out.

        `graphs` captures on CUDA, in `pool` if one is given.
        """
        stem = "paligemma_with_expert."
        self.config = config
        self._vision = Siglip(weights, stem + "paligemma.model.", config.vision)
        self._prefix = load_layers(weights, stem + "paligemma.model.language_model.", config.text)
        self._expert = load_layers(weights, stem + "gemma_expert.model.", config.expert, adaptive=True)
        unread = torch.empty(0)  # of the last layer only keys and values are
        self._prefix[-1] = replace(self._prefix[-1], out=unread, gate_up=unread, down=unread)
        self._linear = {
            name: (weights[name + ".weight"], weights[name + ".bias"])
            for name in ("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out")
        }
        self.device = self._prefix[-1].qkv.device
        self._tokens = TokenRows(table, self.device)
        self._modulations = self._all_modulations(weights, stem + "gemma_expert.model.")
        self._caches = KvCaches(config.text.depth, config.text.head_dim, self._tokens.rows)
        captured = graphs and self.device.type == "cuda"
        self._read: Callable[..., Any] = GraphCache(self._prefill, pool) if captured else self._prefill
        self._steps: Callable[..., Any] = GraphCache(self._flow, pool, shared=1) if captured else self._flow

    @torch.inference_mode()
    def act(
        self,
        images: Tensor,
        prompts: Sequence[Sequence[int]],
        start: Tensor,
        end: Tensor,
        duration: Tensor,
        noise: Tensor,
        shape: BatchShape | None = None,
    ) -> Tensor:
        """(B, 32, 32) float32 normalized actions.

        images (B, 2, 224, 224, 3) uint8 [base, wrist]; prompts of at most 64 ids (BOS first); start and end (B, 32);
        duration (B,) control steps, at most 33; noise (B, 32, 32) standard normal; `shape`: what to compute it in, as
        it is if None. Raises ValueError for a longer prompt or duration, torch.cuda.OutOfMemoryError when the batch is
        too large.
        """
        if duration.min() < 0 or duration.max() > _LONGEST:
            raise ValueError(f"durations are 0 to {_LONGEST} control steps: {duration.tolist()}")
        given = (start.float(), end.float(), duration.long(), noise.float())
        actions = self._run(images, prompts, given, shape or BatchShape.whole(len(prompts)))[1]
        return actions[: len(prompts)].clone()

    @torch.inference_mode()
    def trace(self, start: int, stop: int, shape: BatchShape, prompt_size: int = 32) -> Tensor:
        """Fingerprints (B, pieces) of all that made-up requests of these numbers are answered from (same_bits.py)."""
        images, prompts, values = made_up(start, stop, prompt_size, 2 + self.config.horizon, self.config.action_dim)
        given = (values[:, 0], values[:, 1], torch.arange(start, stop) % (_LONGEST + 1), values[:, 2:])
        cache, actions = self._run(images, prompts, given, shape)
        return fingerprints(*(part[: stop - start] for part in (*cache, actions)))

    def _run(
        self, images: Tensor, prompts: Sequence[Sequence[int]], given: Sequence[Tensor], shape: BatchShape
    ) -> tuple[Tensor, Tensor]:
        """The cache (depth, rows, slots, 2 D) and the actions (rows, 32, 32); `given`: start, end, duration, noise."""
        size = padded_size(max(map(len, prompts)), PROMPT_SIZES)
        rows = torch.tensor([[*row, *[0] * (size - len(row))] for row in self._tokens.places(prompts)])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        inputs = [tensor.to(self.device, non_blocking=True) for tensor in (images, rows, lengths, *given)]
        cache = self._caches.take(shape.rows, aligned(2 * IMAGE_TOKENS + size + 2 + self.config.horizon))
        (real,) = read_parts(self._read, shape, inputs[:3], cache)
        return cache, self._steps(cache, real, *(padded(values, shape.rows) for values in inputs[2:]))

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
        """Ten Euler steps from t = 1 to 0, after prefixes that the cache (depth, B, slots, 2 D) holds.

        `real` (B, S) are the prefix slots that may be seen.
        """
        cos, sin, bias = self._suffix_mask(lengths, real)
        ends = self._apply("proprio_encoder", torch.stack([start, end], dim=1))
        modulations = [[Modulation(*norm.unbind(1)) for norm in step] for step in self._modulations[:, :, duration]]
        x = noise
        for step in range(NUM_STEPS):
            x = x - (1.0 / NUM_STEPS) * self._velocity(x, ends, modulations[step], cache, cos, sin, bias, real.shape[1])
        return x

    def _prefill(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys beside values (depth, B, S, 2 D) of images and prompt, and which of them are real (B, S)."""
        batch, config = tokens.shape[0], self.config.text
        text = F.embedding(tokens, self._tokens.rows)
        seen = self._vision(images.flatten(0, 1)).view(batch, 2 * IMAGE_TOKENS, -1)
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
            if index < len(self._prefix) - 1:  # of the last layer only keys and values are read
                x, normed = ops.add_norm(x, F.linear(ops.attend(q, kv, bias), layer.out), layer.norm_post)
                branch = ops.feed_forward(normed, layer.gate_up, layer.down)
        return keys_values, real

    def _suffix_mask(self, lengths: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary tables of the suffix and its bias (B, T, S + T): start and end see each other, actions see all."""
        count = 2 + self.config.horizon
        index = torch.arange(count, device=self.device)
        cos, sin = rope_tables(2 * IMAGE_TOKENS + lengths[:, None] + index, self.config.expert.head_dim)
        own = (index[None, :] < 2) | (index[:, None] >= 2)
        own = F.pad(own, (0, aligned(real.shape[1] + count) - real.shape[1] - count))
        allowed = torch.cat([real[:, None].expand(-1, count, -1), own.expand(len(real), -1, -1)], dim=2)
        return cos, sin, bias_of(allowed)

    @torch.inference_mode()
    def _all_modulations(self, weights: dict[str, Tensor], stem: str) -> Tensor:
        """Of every flow step, norm and duration: scale, shift and gate, (10, norms, 34, 3, width) float32.

        They depend on nothing else, so they are computed once; the norms' `weights` are taken out. Norms are in order:
        before and after each layer's attention, then the final one.
        """
        width, device = self.config.expert.width, self.device
        times = torch.tensor([1.0 - step / NUM_STEPS for step in range(NUM_STEPS)], dtype=torch.float64)
        durations = torch.arange(_LONGEST + 1, dtype=torch.float64) / _LONGEST
        grid = (NUM_STEPS, len(durations), width)
        both = torch.cat([_sincos(times, width)[:, None].expand(grid), _sincos(durations, width).expand(grid)], dim=-1)
        hidden = F.silu(self._apply("time_mlp_in", both.to(device)))
        condition = F.silu(self._apply("time_mlp_out", hidden))
        layers = range(self.config.expert.depth)
        parts = ("input_layernorm", "post_attention_layernorm")
        names = [*(f"{stem}layers.{layer}.{part}.dense" for layer in layers for part in parts), f"{stem}norm.dense"]
        every = [F.linear(condition, weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias")) for name in names]
        return torch.stack(every, dim=1).view(NUM_STEPS, len(names), len(durations), 3, width)

    def _velocity(
        self,
        x: Tensor,
        ends: Tensor,
        modulations: list[Modulation],
        cache: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        prefix: int,
    ) -> Tensor:
        """The flow's velocity (B, 32, 32) at x; writes the suffix's slots of the cache."""
        config = self.config.expert
        tokens = torch.cat([ends, self._apply("action_in_proj", x)], dim=1).to(cache.dtype)
        branch = gate = None
        for index, layer in enumerate(self._expert):
            before, after = modulations[2 * index], modulations[2 * index + 1]
            tokens, normed = ops.add_adaptive_norm(tokens, branch, gate, before)
            q = ops.queries(normed, layer.qkv, cos, sin, config, cache[index, :, prefix : prefix + tokens.shape[1]])
            seen = F.linear(ops.attend(q, cache[index], bias), layer.out)
            tokens, normed = ops.add_adaptive_norm(tokens, seen, before.gate, after)
            branch, gate = ops.feed_forward(normed, layer.gate_up, layer.down), after.gate
        final = ops.add_adaptive_norm(tokens, branch, gate, modulations[-1])[1][:, -self.config.horizon :]
        return self._apply("action_out_proj", final)

    def _apply(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._linear[name]
        return ops.linear(x, weight, bias)


def _sincos(values: Tensor, width: int) -> Tensor:
    """(..., width) float32: sines then cosines of 2 pi x / period, periods geometric; computed in float64."""
    shortest, longest = _PERIODS
    fractions = torch.from_numpy(np.linspace(0.0, 1.0, width // 2)).to(values.device)
    periods = shortest * (longest / shortest) ** fractions
    angles = values.double()[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
