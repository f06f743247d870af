"""The block planner: a plan's waypoints one after another, all tokens of a waypoint in one pass.

A pass's rows see the prefix, the waypoints before and each other; row k says token k of its own waypoint. What a pass
is fed is the waypoint before it, token by token, shifted by learned vectors: seven passes instead of 55. It computes
all waypoints of a plan, those after a zero duration too, which nobody follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wpray.models import ops
from wpray.models.backbone import Backbone
from wpray.models.config import BLOCK_PLANNER, IMAGE_TOKENS, Precision
from wpray.models.gemma import bias_of, rope_tables
from wpray.models.sampling import GREEDY, Sampling
from wpray.models.token_layout import TokenLayout
from wpray.models.vlm import WaypointVLM


class BlockPlanner(WaypointVLM):
    """A planner on one device that decodes a waypoint at once. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        backbone: Backbone,
        weights: dict[str, Tensor],
        layout: TokenLayout,
        header: Sequence[int],
        graphs: bool,
        pool: Any = None,
        head: Precision = "bfloat16",
        sampling: Sampling = GREEDY,
    ) -> None:
        """`weights` as Checkpoint's `tensors` give them; the block planner's are taken out. Else as WaypointVLM."""
        kind = backbone.tokens.rows.dtype
        query, slots, blocks = (
            None if (tensor := weights.pop(BLOCK_PLANNER + name, None)) is None else tensor.to(kind)
            for name in ("query_resid", "slot_embed.weight", "block_embed.weight")
        )
        assert query is not None and slots is not None  # the layout's own rule
        self._query, self._slots, self._blocks = query, slots, blocks  # (K, width), (K, width), (M, width) or None
        super().__init__(backbone, layout, header, graphs, pool, head, sampling)

    def _begins(self, header: Sequence[int]) -> list[int]:
        return list(header)

    def _new_slots(self, num_waypoints: int) -> int:
        return self.layout.tokens_per_waypoint * num_waypoints

    def _answers(
        self,
        layers: Tensor,
        real: Tensor,
        hidden: Tensor,
        lengths: Tensor,
        forced: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """(B, M, V) sampled values after prompts that `layers` (depth, B, slots, 2 D) hold.

        `real` (B, S) are the prefix slots that may be seen; `hidden` is not read.
        """
        prefix, rows = real.shape[1], self.layout.tokens_per_waypoint
        layers[:, :, prefix:] = 0  # of the batch before: what is not seen yet must at least be finite
        first = 2 * IMAGE_TOKENS + lengths + len(self._answer)
        x = self._shifted(self._wp + self._query, 0).expand(len(lengths), -1, -1)
        values: list[Tensor] = []
        for block in range(forced.shape[1]):
            slots = torch.arange(block * rows, (block + 1) * rows, device=self.device)
            tables = rope_tables(first[:, None] + slots, self._text.head_dim)
            reached = torch.arange(layers.shape[2] - prefix, device=self.device) < (block + 1) * rows
            visible = bias_of(torch.cat([real, reached.expand(len(real), -1)], dim=1)[:, None])
            states = self._block(x, layers, prefix + block * rows, tables, visible)
            chosen, embedded = self._choose(states, forced[:, block], bias, block)
            values.append(chosen)
            x = self._shifted(embedded, block + 1)
        return torch.stack(values, dim=1)

    def _shifted(self, tokens: Tensor, block: int) -> Tensor:
        """What a block is fed: tokens (..., K, width), each addition rounded to their dtype."""
        x = tokens + self._slots
        return x if self._blocks is None else x + self._blocks[min(block, len(self._blocks) - 1)]

    def _block(self, x: Tensor, layers: Tensor, cursor: int, tables: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Hidden states (B, K, width) of a block of tokens; their keys and values go to the slots from `cursor` on."""
        branch = None
        for layer, kv in zip(self._layers, layers, strict=True):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, *tables, self._text, kv[:, cursor : cursor + x.shape[1]])
            x, branch = self._finish(x, ops.attend(q, kv, bias), layer)
        normed = ops.add_norm(x, branch, self._norm)[1]
        if self.hidden is not None:
            self.hidden.append(normed)
        return normed

    def _choose(self, states: Tensor, forced: Tensor, bias: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
        """Values (B, V) of a block's hidden states (B, K, width), and the block's embedded tokens (B, K, width).

        <wp> and <dur> are what they must be; the others are chosen, each by itself.
        """
        batch, last = len(states), len(self._choices) - 1
        values, tokens, start = [], [self._wp.expand(batch, 1, -1)], 0
        while start <= last:  # places of one family are scored together
            choice = self._choices[start]
            stop = next((place for place in range(start, last + 1) if self._choices[place] is not choice), last + 1)
            shift = 1 + (start == last)  # <wp> comes before, and <dur> before the duration
            scores = self._scores(states[:, start + shift : stop + shift], choice)
            scores = self._sampled(scores, bias, block, start, stop - start)
            own = forced[:, start:stop].reshape(-1)
            value, embedded = ops.pick(scores.flatten(0, 1), own, choice.embedded, None)
            values.append(value.view(batch, -1))
            tokens += [self._dur.expand(batch, 1, -1)] if start == last else []
            tokens.append(embedded.view(batch, stop - start, -1))
            start = stop
        return torch.cat(values, dim=1), torch.cat(tokens, dim=1)
