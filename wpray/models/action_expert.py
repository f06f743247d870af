"""The action expert: flow matching from noise to an action chunk between two waypoints.

A PaliGemma prefix reads images and instruction once; then ten Euler steps run a narrower Gemma over 34 tokens (start,
end, 32 noisy actions) that attends to the prefix's keys of the same layer. Its norms are modulated by the flow time and
the duration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import ops
from wpray.models.config import IMAGE_TOKENS, ActionExpertConfig
from wpray.models.gemma import Modulation, aligned, bias_of, load_layers, padded_size, rope_tables
from wpray.models.graphs import GraphCache
from wpray.models.siglip import Siglip

NUM_STEPS = 10
PROMPT_SIZES = (32, 64)  # prompts are padded to the next of these
_LONGEST = 33.0  # control steps that a duration is divided by
_PERIODS = (4e-3, 4.0)


class ActionExpert:
    """A loaded action expert on one device. Not thread-safe: one caller at a time."""

    def __init__(self, weights: dict[str, Tensor], config: ActionExpertConfig, graphs: bool, pool: Any = None) -> None:
        """`weights` as `Checkpoint.tensors` gives them; what is fused is taken out.

        `graphs` captures on CUDA, in `pool` if one is given.
        """
        stem = "paligemma_with_expert."
        self.config = config
        self._vision = Siglip(weights, stem + "paligemma.model.", config.vision)
        self._prefix = load_layers(weights, stem + "paligemma.model.language_model.", config.text)
        self._expert = load_layers(weights, stem + "gemma_expert.model.", config.expert, adaptive=True)
        self._embedding = weights[stem + "paligemma.lm_head.weight"]
        self._linear = {
            name: (weights[name + ".weight"], weights[name + ".bias"])
            for name in ("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out")
        }
        self._modulate = _modulation_weights(weights, stem + "gemma_expert.model.", config.expert.depth)
        self.device = self._embedding.device
        self._scale = self._embedding.new_tensor(config.text.width**0.5)
        times = [1.0 - step / NUM_STEPS for step in range(NUM_STEPS)]
        self._times = _sincos(torch.tensor(times, dtype=torch.float64), config.expert.width).to(self.device)
        self._graphs = GraphCache(self._flow, pool) if graphs and self.device.type == "cuda" else None

    @torch.inference_mode()
    def act(
        self,
        images: Tensor,
        prompts: Sequence[Sequence[int]],
        start: Tensor,
        end: Tensor,
        duration: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """(B, 32, 32) float32 normalized actions.

        images (B, 2, 224, 224, 3) uint8 [base, wrist]; prompts of at most 64 ids (BOS first); start and end (B, 32);
        duration (B,) control steps; noise (B, 32, 32) standard normal. Raises ValueError for a longer prompt,
        torch.cuda.OutOfMemoryError when the batch is too large.
        """
        size = padded_size(max(map(len, prompts)), PROMPT_SIZES)
        rows = torch.tensor([[*prompt, *[0] * (size - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        embedded = _sincos(duration.double() / _LONGEST, self.config.expert.width)
        given = (images, rows, lengths, start.float(), end.float(), embedded, noise.float())
        arguments = tuple(tensor.to(self.device, non_blocking=True) for tensor in given)
        return self._graphs(*arguments) if self._graphs is not None else self._flow(*arguments)

    def _flow(
        self,
        images: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        start: Tensor,
        end: Tensor,
        duration: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Ten Euler steps from t = 1 to 0; every shape is fixed, so all of it is one CUDA graph."""
        cache, real = self._run_prefix(images, tokens, lengths)
        cos, sin, bias = self._suffix_mask(lengths, real)
        ends = self._apply("proprio_encoder", torch.stack([start, end], dim=1))
        modulations = self._modulations(duration)
        x = noise
        for step in range(NUM_STEPS):
            x = x - (1.0 / NUM_STEPS) * self._velocity(x, ends, modulations[step], cache, cos, sin, bias, real.shape[1])
        return x

    def _run_prefix(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys beside values (depth, B, slots, 2 D), the suffix's still empty, and the prefix's real slots (B, S)."""
        batch, config = tokens.shape[0], self.config.text
        text = F.embedding(tokens, self._embedding) * self._scale
        seen = self._vision(images.flatten(0, 1)).view(batch, 2 * IMAGE_TOKENS, -1)
        x = torch.cat([seen, text], dim=1)
        prefix = x.shape[1]
        slots = torch.arange(prefix, device=self.device)
        real = slots < 2 * IMAGE_TOKENS + lengths[:, None]
        bias = bias_of(real)[:, None]
        cos, sin = rope_tables(slots.expand(batch, -1), config.head_dim)
        slots_in_all = aligned(prefix + 2 + self.config.horizon)
        cache = x.new_zeros((len(self._prefix), batch, slots_in_all, 2 * config.head_dim))
        branch = None
        for index, layer in enumerate(self._prefix):
            kv = cache[index, :, :prefix]
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, cos, sin, config, kv)
            if index < len(self._prefix) - 1:  # of the last layer only keys and values are read
                x, normed = ops.add_norm(x, F.linear(ops.attend(q, kv, bias), layer.out), layer.norm_post)
                branch = ops.feed_forward(normed, layer.gate_up, layer.down)
        return cache, real

    def _suffix_mask(self, lengths: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary tables of the suffix and its bias (B, T, S + T): start and end see each other, actions see all."""
        count = 2 + self.config.horizon
        index = torch.arange(count, device=self.device)
        cos, sin = rope_tables(2 * IMAGE_TOKENS + lengths[:, None] + index, self.config.expert.head_dim)
        own = (index[None, :] < 2) | (index[:, None] >= 2)
        own = F.pad(own, (0, aligned(real.shape[1] + count) - real.shape[1] - count))
        allowed = torch.cat([real[:, None].expand(-1, count, -1), own.expand(len(real), -1, -1)], dim=2)
        return cos, sin, bias_of(allowed)

    def _modulations(self, duration: Tensor) -> list[list[Modulation]]:
        """Of every flow step, each norm's modulation; they depend on the time and the duration alone."""
        batch, width = duration.shape[0], self.config.expert.width
        both = torch.cat([self._times[:, None].expand(-1, batch, -1), duration.expand(NUM_STEPS, -1, -1)], dim=-1)
        hidden = F.silu(self._apply("time_mlp_in", both.float()))
        condition = F.silu(self._apply("time_mlp_out", hidden))
        weight, bias = self._modulate
        every = F.linear(condition, weight, bias).view(NUM_STEPS, batch, -1, 3, width)
        return [
            [Modulation(*every[step, :, norm].unbind(1)) for norm in range(every.shape[2])] for step in range(NUM_STEPS)
        ]

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
        tokens = torch.cat([ends, self._apply("action_in_proj", x)], dim=1).to(self._embedding.dtype)
        branch = gate = None
        for index, layer in enumerate(self._expert):
            before, after = modulations[2 * index], modulations[2 * index + 1]
            tokens, normed = ops.add_adaptive_norm(tokens, branch, gate, before)
            q = ops.queries(normed, layer.qkv, cos, sin, config, cache[index, :, prefix : prefix + tokens.shape[1]])
            seen = F.linear(ops.attend(q, cache[index], bias), layer.out)
            tokens, normed = ops.add_adaptive_norm(tokens, seen, before.gate, after)
            branch, gate = ops.feed_forward(normed, layer.gate_up, layer.down), after.gate
        final = ops.add_adaptive_norm(tokens, branch, gate, modulations[-1])[1][:, -self.config.horizon :]
        return self._apply("action_out_proj", final.float())

    def _apply(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._linear[name]
        return F.linear(x, weight, bias)


def _modulation_weights(weights: dict[str, Tensor], stem: str, depth: int) -> tuple[Tensor, Tensor]:
    """All adaptive norms' Linears as one: before and after each layer's attention, then the final norm."""
    names = [
        f"{stem}layers.{i}.{norm}" for i in range(depth) for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    names.append(stem + "norm")
    parts = (".dense.weight", ".dense.bias")
    weight, bias = (torch.cat([weights.pop(name + part) for name in names]) for part in parts)
    return weight, bias


def _sincos(values: Tensor, width: int) -> Tensor:
    """(..., width) float32: sines then cosines of 2 pi x / period, periods geometric; computed in float64."""
    shortest, longest = _PERIODS
    fractions = torch.from_numpy(np.linspace(0.0, 1.0, width // 2)).to(values.device)
    periods = shortest * (longest / shortest) ** fractions
    angles = values.double()[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
