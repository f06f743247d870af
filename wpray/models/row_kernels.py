"""Triton kernels that compute each row separately, so that its sums do not depend on the number of rows.

A library may split the sums of a product by the batch's shape. On an H100, cuBLAS does so for small float32 products,
and rarely for bfloat16 (batch_invariance.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    columns,
    inner: tl.constexpr,
    has_bias: tl.constexpr,
    block: tl.constexpr,
    step: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column, place = tl.program_id(1) * block + tl.arange(0, block), tl.arange(0, step)
    wanted = column < columns
    parts = tl.zeros((block, step), tl.float32)
    for start in tl.static_range(0, inner, step):
        inside = start + place < inner
        x = tl.load(x_ptr + row * inner + start + place, mask=inside, other=0.0).to(tl.float32)
        source = weight_ptr + column[:, None] * inner + (start + place)[None, :]
        parts += x[None, :] * tl.load(source, mask=wanted[:, None] & inside[None, :], other=0.0)
    total = tl.sum(parts, axis=1)
    if has_bias:
        total += tl.load(bias_ptr + column, mask=wanted, other=0.0)
    tl.store(out_ptr + row * columns + column, total, mask=wanted)


@triton.jit
def _pick(
    scores_ptr,
    forced_ptr,
    forced_stride,
    table_ptr,
    follower_ptr,
    value_ptr,
    out_ptr,
    count,
    width: tl.constexpr,
    tokens: tl.constexpr,
    block: tl.constexpr,
    step: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    candidate = tl.arange(0, block)
    scores = tl.load(scores_ptr + row * count + candidate, mask=candidate < count, other=float("-inf"))
    best = tl.max(tl.where(scores == tl.max(scores, axis=0), candidate, 0), axis=0).to(tl.int64)
    forced = tl.load(forced_ptr + row * forced_stride)
    value = tl.where(forced >= 0, forced, best)
    tl.store(value_ptr + row, value)
    place = tl.arange(0, step)
    for start in tl.static_range(0, width, step):
        inside = start + place < width
        target = out_ptr + row * tokens * width + start + place
        tl.store(target, tl.load(table_ptr + value * width + start + place, mask=inside), mask=inside)
        if tokens == 2:
            tl.store(target + width, tl.load(follower_ptr + start + place, mask=inside), mask=inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (..., K) of any dtype times weight (N, K)^T, plus bias (N,), as (..., N) float32."""
    x = x.contiguous()
    columns, inner = weight.shape
    out = torch.empty((*x.shape[:-1], columns), dtype=torch.float32, device=x.device)
    step = min(512, triton.next_power_of_2(inner))
    block = max(4, 2048 // step)
    _linear[(x.numel() // inner, triton.cdiv(columns, block))](
        x,
        weight,
        weight if bias is None else bias,
        out,
        columns,
        inner=inner,
        has_bias=bias is not None,
        block=block,
        step=step,
        num_warps=4,
    )
    return out


def pick(scores: Tensor, forced: Tensor, table: Tensor, follower: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the best of each row's scores (B, N), or the forced value (B,) if it is not negative, and its embedding.

    Values are (B,) int64. Embeddings (B, 1 or 2, width) are rows of `table` (N, width), each with the `follower`
    (width,) if there is one. A tie takes the larger value.
    """
    batch, count = scores.shape
    width, tokens = table.shape[1], 1 if follower is None else 2
    values = torch.empty(batch, dtype=torch.int64, device=scores.device)
    out = torch.empty((batch, tokens, width), dtype=table.dtype, device=table.device)
    _pick[(batch,)](
        scores,
        forced,
        forced.stride(0),
        table,
        table if follower is None else follower,
        values,
        out,
        count,
        width=width,
        tokens=tokens,
        block=triton.next_power_of_2(count),
        step=min(2048, triton.next_power_of_2(width)),
        num_warps=8,
    )
    return values, out
