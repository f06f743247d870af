"""Triton kernel for the attention of a decoding pass: rotary embedding, cache, scores, softmax and sum.

A pass has one or two tokens, so the gaps between four kernels would take longer than their work. Here each program
handles a block of slots, and the last one to finish joins the parts in the blocks' order, so the sum depends neither on
which program was last nor on the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # queries of a program, the tensor cores' minimum: two tokens of eight heads


@triton.jit
def _turned(row_ptr, cos_ptr, sin_ptr, column, inside, half: tl.constexpr):
    """Return rows of 2 half columns after their rotary embedding, float32; each column rotates with its partner."""
    partner, angle = (column + half) % (2 * half), column % half
    own = tl.load(row_ptr + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row_ptr + partner, mask=inside, other=0.0).to(tl.float32)
    cos, sin = tl.load(cos_ptr + angle, mask=inside, other=0.0), tl.load(sin_ptr + angle, mask=inside, other=0.0)
    return own * cos + tl.where(column < half, -other, other) * sin


@triton.jit
def _join(sums_ptr, tops_ptr, totals_ptr, row, column, asked, blocks: tl.constexpr, rows: tl.constexpr):
    """Return the attention of rows from the parts of all blocks, which other programs wrote."""
    dim: tl.constexpr = column.shape[0]
    highest = tl.full((rows,), float("-inf"), tl.float32)
    for index in tl.static_range(blocks):
        highest = tl.maximum(highest, tl.load(tops_ptr + index * rows + row, cache_modifier=".cg"))
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    total, joined = tl.zeros((rows,), tl.float32), tl.zeros((rows, dim), tl.float32)
    for index in tl.static_range(blocks):
        share = tl.exp(tl.load(tops_ptr + index * rows + row, cache_modifier=".cg") - highest)
        total += share * tl.load(totals_ptr + index * rows + row, cache_modifier=".cg")
        place = sums_ptr + (index * rows + row)[:, None] * dim + column[None, :]
        joined += share[:, None] * tl.load(place, mask=asked, other=0.0, cache_modifier=".cg")
    return joined / total[:, None]


@triton.jit
def _block_part(q, kv, bias_ptr, slot, column, asked, slots, scale):
    """Return each row's highest score, sum of weights and weighted values, for one block of slots."""
    dim: tl.constexpr = column.shape[0]
    there = slot < slots
    k = tl.load(kv + slot[None, :] * 2 * dim + column[:, None], mask=there[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision="ieee") * scale
    scores += tl.load(bias_ptr + slot[None, :], mask=asked & there[None, :], other=float("-inf"))
    top = tl.max(scores, axis=1)
    # A row that sees no slot of this block has weight zero when the parts are joined.
    weights = tl.exp(scores - tl.where(top == float("-inf"), 0.0, top)[:, None])
    v = tl.load(kv + slot[:, None] * 2 * dim + dim + column[None, :], mask=there[:, None], other=0.0)
    return top, tl.sum(weights, axis=1), tl.dot(weights.to(q.dtype), v, input_precision="ieee")


@triton.jit
def _put(projected_ptr, kv, cos_ptr, sin_ptr, slot, first, column, block: tl.constexpr, half: tl.constexpr):
    """Write a new token's rotated key and its value to its slot if the slot is in this program's block."""
    if (slot >= first) & (slot < first + block):
        dim: tl.constexpr = 2 * half
        key = _turned(projected_ptr, cos_ptr, sin_ptr, column, column < dim, half)
        tl.store(kv + slot * 2 * dim + column, key.to(kv.dtype.element_ty))
        tl.store(kv + slot * 2 * dim + dim + column, tl.load(projected_ptr + dim + column))


@triton.jit
def _attend_new(
    projected_ptr,
    cos_ptr,
    sin_ptr,
    kv_ptr,
    bias_ptr,
    sums_ptr,
    tops_ptr,
    totals_ptr,
    counter_ptr,
    out_ptr,
    cursor_ptr,
    slots,
    kv_stride,
    table_stride,
    bias_stride,
    scale,
    tokens: tl.constexpr,
    heads: tl.constexpr,
    half: tl.constexpr,
    blocks: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim: tl.constexpr = 2 * half
    row, column, slot = tl.arange(0, rows), tl.arange(0, dim), part * block + tl.arange(0, block)
    kv, projected = kv_ptr + batch * kv_stride, projected_ptr + batch * tokens * (heads + 2) * dim
    cos, sin, cursor = cos_ptr + batch * table_stride, sin_ptr + batch * table_stride, tl.load(cursor_ptr + batch)
    for new in tl.static_range(tokens):
        source, turn = projected + (new * (heads + 2) + heads) * dim, new * half
        _put(source, kv, cos + turn, sin + turn, cursor + new, part * block, column, block, half)
    tl.debug_barrier()
    token, asked = row // heads, (row < tokens * heads)[:, None]
    own, tables = projected + (token * (heads + 2) + row % heads)[:, None] * dim, (token * half)[:, None]
    q = _turned(own, cos + tables, sin + tables, column[None, :], asked, half).to(kv_ptr.dtype.element_ty)
    bias = bias_ptr + batch * bias_stride + (token * slots)[:, None]
    top, total, part_sums = _block_part(q, kv, bias, slot, column, asked, slots, scale)
    first, mine = batch * blocks * rows, (batch * blocks + part) * rows + row
    tl.store(tops_ptr + mine, top)
    tl.store(totals_ptr + mine, total)
    tl.store(sums_ptr + mine[:, None] * dim + column[None, :], part_sums, mask=asked)

    tl.debug_barrier()  # the part is complete before it is counted
    if tl.atomic_add(counter_ptr + batch, 1, sem="acq_rel") == blocks - 1:
        result = _join(sums_ptr + first * dim, tops_ptr + first, totals_ptr + first, row, column, asked, blocks, rows)
        tl.store(
            out_ptr + (batch * tokens * heads + row)[:, None] * dim + column[None, :], result.to(q.dtype), mask=asked
        )
        tl.store(counter_ptr + batch, 0)  # ready for the next launch


class Workspace:
    """Memory that the programs of a launch share; consecutive launches reuse it."""

    def __init__(self, batch: int, slots: int, dim: int, like: Tensor) -> None:
        """Allocate it for caches (batch, slots, 2 dim) on the device and in the dtype of `like`."""
        self.block = 64 if like.element_size() == 2 else 32
        self.blocks = triton.cdiv(slots, self.block)
        scratch: dict[str, Any] = {"dtype": torch.float32, "device": like.device}
        self.tops, self.totals = torch.empty((2, batch, self.blocks, _ROWS), **scratch)
        self.sums = torch.empty((batch, self.blocks, _ROWS, dim), **scratch)
        self.counter = torch.zeros(batch, dtype=torch.int32, device=like.device)


def attend_new(
    projected: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, cursor: Tensor, bias: Tensor, heads: int, work: Workspace
) -> Tensor:
    """Return the attention (B, T, heads * D) of T new tokens over `kv` (B, S, 2 D), after writing theirs to it.

    `kv` holds keys beside values. `projected` (B, T, (heads + 2) D) is the tokens' fused projection; `cos` and `sin`
    (B, T, D / 2) and `bias` (B, T, S) are float32 views, contiguous except for the batch; `cursor` (B,) int64,
    contiguous, is the slot of each row's first new token.
    """
    batch, tokens, width = projected.shape
    dim = width // (heads + 2)
    out = torch.empty((batch, tokens, heads * dim), dtype=projected.dtype, device=kv.device)
    _attend_new[(batch, work.blocks)](
        projected,
        cos,
        sin,
        kv,
        bias,
        work.sums,
        work.tops,
        work.totals,
        work.counter,
        out,
        cursor,
        kv.shape[1],
        kv.stride(0),
        cos.stride(0),
        bias.stride(0),
        dim**-0.5,
        tokens=tokens,
        heads=heads,
        half=dim // 2,
        blocks=work.blocks,
        block=work.block,
        rows=_ROWS,
        num_warps=4,
    )
    return out
