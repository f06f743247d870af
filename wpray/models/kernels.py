"""Triton kernels for elementwise work that torch does in many passes; each has a twin in plain torch in gemma.py.

Decoding one token streams every weight once and does little else, so a pass takes the time of its products plus the
gaps between kernels, and fewer kernels have fewer gaps. Products are left to cuBLAS, which streams weights for few rows
faster than a Triton kernel did (104.7 against 114.5 ms per plan at batch 1 on an H200).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(
    x_ptr,
    branch_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    normed_ptr,
    tokens,
    modulation_stride,
    eps,
    width: tl.constexpr,
    has_branch: tl.constexpr,
    adaptive: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    modulation = (row // tokens) * modulation_stride + column
    if has_branch:
        branch = tl.load(branch_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        if adaptive:
            branch = branch * tl.load(gate_ptr + modulation, mask=inside, other=0.0)
        rounded = (x + branch).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * width + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    if adaptive:
        scale = tl.load(scale_ptr + modulation, mask=inside, other=0.0)
        normed = normed * (1.0 + scale) + tl.load(shift_ptr + modulation, mask=inside, other=0.0)
    else:
        normed = normed * tl.load(scale_ptr + column, mask=inside, other=0.0)
    tl.store(normed_ptr + row * width + column, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rope_store(
    projected_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    kv_ptr,
    tokens,
    kv_batch_stride,
    kv_token_stride,
    heads: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)  # heads: the key; heads + 1: the value
    column = tl.arange(0, block)
    inside = column < half
    source = projected_ptr + row * (heads + 2) * 2 * half + head * 2 * half
    first = tl.load(source + column, mask=inside, other=0.0)
    second = tl.load(source + half + column, mask=inside, other=0.0)
    if head <= heads:
        cos = tl.load(cos_ptr + row * half + column, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + row * half + column, mask=inside, other=0.0)
        low, high = first.to(tl.float32), second.to(tl.float32)
        first = (low * cos - high * sin).to(q_ptr.dtype.element_ty)
        second = (high * cos + low * sin).to(q_ptr.dtype.element_ty)
    if head < heads:
        target = q_ptr + (row * heads + head) * 2 * half
    else:
        target = (
            kv_ptr + (row // tokens) * kv_batch_stride + (row % tokens) * kv_token_stride + (head - heads) * 2 * half
        )
    tl.store(target + column, first, mask=inside)
    tl.store(target + half + column, second, mask=inside)


@triton.jit
def _softmax(
    scores_ptr,
    bias_ptr,
    out_ptr,
    rows,
    heads,
    bias_batch,
    bias_token,
    scale,
    slots: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < slots
    scores = tl.load(scores_ptr + row * slots + column, mask=inside, other=float("-inf")).to(tl.float32) * scale
    bias = bias_ptr + (row // rows) * bias_batch + ((row % rows) // heads) * bias_token
    scores += tl.load(bias + column, mask=inside, other=float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    tl.store(out_ptr + row * slots + column, weights.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))


@triton.jit
def _geglu(x_ptr, out_ptr, mlp: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < mlp
    gate = tl.load(x_ptr + row * 2 * mlp + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * mlp + mlp + column, mask=inside, other=0.0)
    activated = _gelu_tanh(gate).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * mlp + column, activated * up, mask=inside)


def add_norm(x: Tensor, branch: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x + branch, its RMS norm times `scale`) for x (..., width)."""
    return _launch_add_norm(x, branch, scale, None, None, 0)


def add_adaptive_norm(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (x + gate * branch, its RMS norm times (1 + scale) plus shift); x (B, T, width), others (B, width)."""
    return _launch_add_norm(x, branch, scale, shift, gate, scale.stride(0))


def _launch_add_norm(
    x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor | None, gate: Tensor | None, stride: int
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    width = x.shape[-1]
    total = x if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    tokens = x.shape[1] if x.dim() == 3 else 1
    _add_norm[(x.numel() // width,)](
        x,
        x if branch is None else branch,
        scale if gate is None else gate,
        scale,
        scale if shift is None else shift,
        total,
        normed,
        tokens,
        stride,
        1e-6,
        width=width,
        has_branch=branch is not None,
        adaptive=shift is not None,
        block=triton.next_power_of_2(width),
        num_warps=4 if width <= 1024 else 8,
    )
    return total, normed


def rope_store(projected: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Return rotated queries (B, T, heads, D) of a fused projection; write keys and values to `kv` (B, T, 2 D)."""
    batch, tokens, width = projected.shape
    half = width // (heads + 2) // 2
    q = torch.empty((batch, tokens, heads, 2 * half), dtype=projected.dtype, device=projected.device)
    _rope_store[(batch * tokens, heads + 2)](
        projected,
        cos,
        sin,
        q,
        kv,
        tokens,
        kv.stride(0),
        kv.stride(1),
        heads=heads,
        half=half,
        block=triton.next_power_of_2(half),
        num_warps=1,
    )
    return q


def softmax(scores: Tensor, bias: Tensor, heads: int, scale: float) -> Tensor:
    """Return the softmax over slots of scores (B, T * heads, S) * scale + bias (B or 1, T or 1, S) float32."""
    batch, rows, slots = scores.shape
    out = torch.empty_like(scores)
    bias_batch = bias.stride(0) if bias.shape[0] > 1 else 0
    bias_token = bias.stride(1) if bias.shape[1] > 1 else 0
    _softmax[(batch * rows,)](
        scores,
        bias,
        out,
        rows,
        heads,
        bias_batch,
        bias_token,
        scale,
        slots=slots,
        block=triton.next_power_of_2(slots),
        num_warps=4,
    )
    return out


def geglu(x: Tensor) -> Tensor:
    """Return GELU of the first half of x (..., 2 mlp), times the second half."""
    mlp = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], mlp), dtype=x.dtype, device=x.device)
    block = min(512, triton.next_power_of_2(mlp))  # small, so that a few rows fill the GPU
    _geglu[(x.numel() // (2 * mlp), triton.cdiv(mlp, block))](x, out, mlp=mlp, block=block, num_warps=4)
    return out
