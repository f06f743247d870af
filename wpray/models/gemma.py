"""Gemma's parts as free functions on tensors: what runs is what is written, with no module hooks in between.

Norms and softmax work in float32 and give back the compute dtype. Attention has one key-value head for all query
heads, so queries of all heads are rows of one matrix product, and keys are never expanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models.config import GemmaConfig

_EPS = 1e-6
_ROPE_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class GemmaLayer:
    """One layer's weights; projections that read the same input are fused."""

    qkv: Tensor  # (heads * D + 2 D, width)
    out: Tensor  # (width, heads * D)
    gate_up: Tensor  # (2 mlp, width)
    down: Tensor  # (width, mlp)
    norm_in: Tensor  # (width,) 1 + w, float32; adaptive: empty
    norm_post: Tensor  # (width,)


@dataclass(frozen=True, slots=True)
class Modulation:
    """What an adaptive norm does at one flow step: scale, shift and gate, each (B, width), float32."""

    scale: Tensor
    shift: Tensor
    gate: Tensor


def load_layers(
    weights: Mapping[str, Tensor], stem: str, config: GemmaConfig, adaptive: bool = False
) -> list[GemmaLayer]:
    """The stack's layers from checkpoint tensors named `stem` + layers.N...."""
    layers = []
    for index in range(config.depth):
        block = f"{stem}layers.{index}."
        attention, mlp = block + "self_attn.", block + "mlp."
        empty = torch.empty(0)
        layers.append(
            GemmaLayer(
                qkv=torch.cat([weights[f"{attention}{name}_proj.weight"] for name in "qkv"]),
                out=weights[attention + "o_proj.weight"],
                gate_up=torch.cat([weights[f"{mlp}{name}_proj.weight"] for name in ("gate", "up")]),
                down=weights[mlp + "down_proj.weight"],
                norm_in=empty if adaptive else 1 + weights[block + "input_layernorm.weight"].float(),
                norm_post=empty if adaptive else 1 + weights[block + "post_attention_layernorm.weight"].float(),
            )
        )
    return layers


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / rms(x) * scale with float32 arithmetic; `scale` (width,) is 1 + w."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS) * scale).to(x.dtype)


def adaptive_norm(x: Tensor, modulation: Modulation) -> Tensor:
    """x / rms(x) * (1 + scale) + shift; x (B, T, width)."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS)
    return (normal * (1 + modulation.scale[:, None]) + modulation.shift[:, None]).to(x.dtype)


def rope_tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin (..., head_dim / 2), float32, for integer positions."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] * (1.0 / _ROPE_BASE**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, heads, D) with tables (B, T, D / 2), in float32, given back in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def project_qkv(
    x: Tensor, layer: GemmaLayer, config: GemmaConfig, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (B, T, heads, D), rotated keys (B, T, D) and values (B, T, D) of normed x (B, T, width)."""
    batch, tokens, _ = x.shape
    dim = config.head_dim
    q, k, v = torch.split(F.linear(x, layer.qkv), [config.heads * dim, dim, dim], dim=-1)
    q = rotate(q.reshape(batch, tokens, config.heads, dim), cos, sin)
    k = rotate(k.reshape(batch, tokens, 1, dim), cos, sin).squeeze(2)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of q (B, T, heads, D) over k, v (B, S, D); `bias` (B, T, S) float32 is 0 where allowed, else -inf.

    Returns (B, T, heads * D).
    """
    batch, tokens, heads, dim = q.shape
    scores = torch.matmul(q.reshape(batch, tokens * heads, dim), k.transpose(1, 2)).reshape(batch, tokens, heads, -1)
    weights = torch.softmax(scores.float() * dim**-0.5 + bias[:, :, None], dim=-1).to(v.dtype)
    return torch.matmul(weights.reshape(batch, tokens * heads, -1), v).reshape(batch, tokens, heads * dim)


def feed_forward(x: Tensor, layer: GemmaLayer) -> Tensor:
    """The GELU-gated MLP of normed x."""
    gate, up = F.linear(x, layer.gate_up).chunk(2, dim=-1)
    return F.linear(F.gelu(gate, approximate="tanh") * up, layer.down)
