"""Operations of both models: Triton kernels on a GPU, plain torch elsewhere, the same function in both."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import gemma
from wpray.models.config import GemmaConfig
from wpray.models.gemma import Modulation
from wpray.models.lora import Weight, project


def add_norm(x: Tensor, branch: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x + branch, its RMS norm times `scale`); x (B, T, width), `scale` (width,) float32."""
    if x.is_cuda:
        from wpray.models import kernels

        return kernels.add_norm(x, branch, scale)
    total = x if branch is None else x + branch
    return total, gemma.rms_norm(total, scale)


def add_adaptive_norm(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, modulation: Modulation
) -> tuple[Tensor, Tensor]:
    """Return (x + gate * branch, its adaptive norm); x (B, T, width), `gate` (B, width) of the branch's own norm."""
    if x.is_cuda:
        from wpray.models import kernels

        return kernels.add_adaptive_norm(x, branch, gate, modulation.scale, modulation.shift)
    if branch is not None and gate is not None:
        x = (x.float() + branch.float() * gate[:, None]).to(x.dtype)
    return x, gemma.adaptive_norm(x, modulation)


def queries(normed: Tensor, weight: Weight, cos: Tensor, sin: Tensor, config: GemmaConfig, kv: Tensor) -> Tensor:
    """Return rotated queries (B, T, heads, D) of normed tokens; write keys beside values to `kv` (B, T, 2 D)."""
    projected = project(normed, weight)
    if normed.is_cuda:
        from wpray.models import kernels

        return kernels.rope_store(projected, cos, sin, kv, config.heads)
    q, kv[:] = gemma.split_qkv(projected, cos, sin, config)
    return q


def attend(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Return the attention (B, T, heads * D) of q (B, T, heads, D) over keys beside values kv (B, S, 2 D).

    `bias` (B or 1, T or 1, S) float32 is 0 for visible slots, else -inf. All heads share the keys, so their queries are
    rows of one product.
    """
    if not q.is_cuda:
        return gemma.attend(q, kv, bias)
    from wpray.models import kernels

    batch, tokens, heads, dim = q.shape
    scores = torch.matmul(q.view(batch, tokens * heads, dim), kv[..., :dim].transpose(1, 2))
    weights = kernels.softmax(scores, bias, heads, dim**-0.5)
    return torch.matmul(weights, kv[..., dim:]).view(batch, tokens, heads * dim)


def workspace(cache: Tensor) -> Any:
    """Return the memory that `attend_new` needs for a cache (depth, B, S, 2 D)."""
    if not cache.is_cuda:
        return None
    from wpray.models.decode_kernel import Workspace

    _, batch, slots, width = cache.shape
    return Workspace(batch, slots, width // 2, cache)


def attend_new(
    normed: Tensor,
    weight: Weight,
    tables: tuple[Tensor, Tensor],
    config: GemmaConfig,
    kv: Tensor,
    cursor: Tensor,
    bias: Tensor,
    work: Any,
) -> Tensor:
    """Return the attention (B, T, heads * D) of one or two new tokens over a cache `kv` (B, S, 2 D).

    Their keys and values are written to it first, from slot `cursor` (B,) int64 of each row on. `tables` are cos and
    sin (B, T, D / 2), `bias` (B, T, S) is as in `attend`, `work` is the cache's workspace.
    """
    cos, sin = tables
    projected = project(normed, weight)
    if normed.is_cuda:
        from wpray.models import decode_kernel

        return decode_kernel.attend_new(projected, cos, sin, kv, cursor, bias, config.heads, work)
    rows, slots = torch.arange(len(kv))[:, None], cursor[:, None] + torch.arange(normed.shape[1])
    q, kv[rows, slots] = gemma.split_qkv(projected, cos, sin, config)
    return gemma.attend(q, kv, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product (..., N) in float32 of x (..., K); on a GPU, no row's sums depend on other rows."""
    if not x.is_cuda:
        return F.linear(x.float(), weight, bias)
    from wpray.models import row_kernels

    return row_kernels.linear(x, weight, bias)


def pick(scores: Tensor, forced: Tensor, table: Tensor, follower: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the best of each row's scores (B, N), or the forced value (B,) if it is not negative, and its embedding.

    Values are (B,) int64. Embeddings (B, 1 or 2, width) are rows of `table` (N, width), each with the `follower`
    (width,) if there is one. A tie takes the larger value, which is the lower id.
    """
    if scores.is_cuda:
        from wpray.models import row_kernels

        return row_kernels.pick(scores, forced, table, follower)
    best = scores.shape[1] - 1 - scores.flip(-1).argmax(-1)
    values = torch.where(forced >= 0, forced, best)
    embedded = table[values][:, None]
    if follower is not None:
        embedded = torch.cat([embedded, follower.expand(len(values), 1, -1)], dim=1)
    return values, embedded


def feed_forward(x: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Return the GELU-gated MLP of normed x."""
    if not x.is_cuda:
        return gemma.feed_forward(x, gate_up, down)
    from wpray.models import kernels

    return project(kernels.geglu(project(x, gate_up)), down)
