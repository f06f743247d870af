"""Parts of Gemma as free functions on tensors, without modules and hooks.

Norms and softmax compute in float32 and return the compute dtype. All query heads share one key-value head, so queries
of all heads are rows of one matrix product, and keys are never expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models.config import GemmaConfig
from wpray.models.lora import Weight, project, take_weight

_EPS = 1e-6
_ROPE_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class GemmaLayer:
    """Weights of one layer; projections of the same input are fused."""

    qkv: Weight  # (heads * D + 2 D, width)
    out: Weight  # (width, heads * D)
    gate_up: Weight  # (2 mlp, width)
    down: Weight  # (width, mlp)
    norm_in: Tensor  # (width,) 1 + w, float32; adaptive: empty
    norm_post: Tensor  # (width,)


@dataclass(frozen=True, slots=True)
class Modulation:
    """Scale, shift and gate of an adaptive norm at one flow step, each (B, width), float32."""

    scale: Tensor
    shift: Tensor
    gate: Tensor


def load_layers(weights: dict[str, Tensor], stem: str, config: GemmaConfig, adaptive: bool = False) -> list[GemmaLayer]:
    """Return the stack's layers from checkpoint tensors named `stem` + layers.N....

    Tensors that are fused are removed from `weights` layer by layer, so the device never holds two copies of a stack.
    """
    layers = []
    for index in range(config.depth):
        block = f"{stem}layers.{index}."
        attention, mlp = block + "self_attn.", block + "mlp."
        empty = torch.empty(0)
        layers.append(
            GemmaLayer(
                qkv=take_weight(weights, *(f"{attention}{name}_proj" for name in "qkv")),
                out=take_weight(weights, attention + "o_proj"),
                gate_up=take_weight(weights, *(f"{mlp}{name}_proj" for name in ("gate", "up"))),
                down=take_weight(weights, mlp + "down_proj"),
                norm_in=empty if adaptive else 1 + weights[block + "input_layernorm.weight"].float(),
                norm_post=empty if adaptive else 1 + weights[block + "post_attention_layernorm.weight"].float(),
            )
        )
    return layers


def padded_size(tokens: int, sizes: Sequence[int]) -> int:
    """Return the first of ascending `sizes` that holds `tokens`. Raise ValueError if none does."""
    size = next((known for known in sizes if known >= tokens), None)
    if size is None:
        raise ValueError(f"a prompt has {tokens} tokens; {sizes[-1]} are the most")
    return size


def aligned(slots: int) -> int:
    """Return `slots` rounded up to a multiple of 8, because the tensor cores' fast kernels need rows of 16 bytes."""
    return -(-slots // 8) * 8


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / rms(x) * scale, computed in float32; `scale` (width,) is 1 + w."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS) * scale).to(x.dtype)


def adaptive_norm(x: Tensor, modulation: Modulation) -> Tensor:
    """Return x / rms(x) * (1 + scale) + shift for x (B, T, width)."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS)
    return (normal * (1 + modulation.scale[:, None]) + modulation.shift[:, None]).to(x.dtype)


def rope_tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin (..., head_dim / 2), float32, for integer positions."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] * (1.0 / _ROPE_BASE**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotary embedding of x (B, T, heads, D) with tables (B, T, D / 2): float32 arithmetic, x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def split_qkv(projected: Tensor, cos: Tensor, sin: Tensor, config: GemmaConfig) -> tuple[Tensor, Tensor]:
    """Return rotated queries (B, T, heads, D), and rotated keys beside values (B, T, 2 D), of a fused projection."""
    batch, tokens, _ = projected.shape
    dim, heads = config.head_dim, config.heads
    rotated = rotate(projected[..., : (heads + 1) * dim].reshape(batch, tokens, heads + 1, dim), cos, sin)
    return rotated[:, :, :heads], torch.cat([rotated[:, :, heads], projected[..., (heads + 1) * dim :]], dim=-1)


def attend(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Return the attention (B, T, heads * D) of q (B, T, heads, D) over keys beside values kv (B, S, 2 D).

    `bias` (B or 1, T or 1, S) float32 is 0 for visible slots, else -inf.
    """
    batch, tokens, heads, dim = q.shape
    k, v = kv[..., :dim], kv[..., dim:]
    scores = torch.matmul(q.reshape(batch, tokens * heads, dim), k.transpose(1, 2)).reshape(batch, tokens, heads, -1)
    weights = torch.softmax(scores.float() * dim**-0.5 + bias[:, :, None], dim=-1).to(v.dtype)
    return torch.matmul(weights.reshape(batch, tokens * heads, -1), v).reshape(batch, tokens, heads * dim)


def feed_forward(x: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Return the GELU-gated MLP of normed x."""
    gate, up = project(x, gate_up).chunk(2, dim=-1)
    return project(F.gelu(gate, approximate="tanh") * up, down)


def bias_of(allowed: Tensor) -> Tensor:
    """Return 0 where allowed, else -inf, float32."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))
