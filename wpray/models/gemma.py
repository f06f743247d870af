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
    x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, config: GemmaConfig
) -> tuple[Tensor, Tensor]:
    """Queries (B, T, heads, D), and keys beside values (B, T, 2 D), rotated, of x (B, T, width)."""
    return split_qkv(F.linear(rms_norm(x, norm), qkv), cos, sin, config)


def split_qkv(projected: Tensor, cos: Tensor, sin: Tensor, config: GemmaConfig) -> tuple[Tensor, Tensor]:
    """Rotates what the fused projection (B, T, heads D + 2 D) gave; see `project_qkv`."""
    batch, tokens, _ = projected.shape
    dim, heads = config.head_dim, config.heads
    rotated = rotate(projected[..., : (heads + 1) * dim].reshape(batch, tokens, heads + 1, dim), cos, sin)
    return rotated[:, :, :heads], torch.cat([rotated[:, :, heads], projected[..., (heads + 1) * dim :]], dim=-1)


def attend(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Attention of q (B, T, heads, D) over keys beside values kv (B, S, 2 D); returns (B, T, heads * D).

    `bias` (B or 1, T or 1, S), in q's dtype, is 0 where a token may look, else -inf.
    """
    batch, tokens, heads, dim = q.shape
    k, v = kv[..., :dim], kv[..., dim:]
    scores = torch.matmul(q.reshape(batch, tokens * heads, dim), k.transpose(1, 2)).reshape(batch, tokens, heads, -1)
    weights = torch.softmax(scores.float() * dim**-0.5 + bias[:, :, None], dim=-1).to(v.dtype)
    return torch.matmul(weights.reshape(batch, tokens * heads, -1), v).reshape(batch, tokens, heads * dim)


def attend_prefix(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """As `attend`, for many queries: a fused kernel, which wants a mask for each query."""
    if q.device.type != "cuda":
        return attend(q, kv, bias)
    batch, tokens, heads, dim = q.shape
    k, v = (part[:, None].expand(-1, heads, -1, -1) for part in (kv[..., :dim], kv[..., dim:]))
    mask = bias[:, None].expand(batch, heads, tokens, -1)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask).transpose(1, 2).reshape(batch, tokens, -1)


def finish_layer(x: Tensor, seen: Tensor, layer: GemmaLayer) -> Tensor:
    """Residual, norm, gated MLP, residual, after the attention's output `seen`."""
    x = x + F.linear(seen, layer.out)
    return x + feed_forward(rms_norm(x, layer.norm_post), layer.gate_up, layer.down)


def feed_forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The GELU-gated MLP of normed x."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.gelu(gate, approximate="tanh") * up, down)


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, else -inf."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
