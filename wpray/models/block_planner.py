"""Block planner: a plan's waypoints in turn, with all tokens of a waypoint in one pass.

A pass's rows see the prefix, earlier waypoints and each other; row k predicts token k of its own waypoint. The input of
a pass is the previous waypoint, token by token, shifted by learned vectors: seven passes instead of 55. All waypoints
of a plan are computed, also those after a zero duration, which are not executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wpray.models import ops
from wpray.models.backbone import Backbone
from wpray.models.config import BLOCK_PLANNER, Precision
from wpray.models.gemma import bias_of, rope_tables
from wpray.models.plan_slots import Prefixes
from wpray.models.sampling import GREEDY, Sampling
from wpray.models.token_layout import TokenLayout
from wpray.models.vlm import WaypointVLM


class BlockPlanner(WaypointVLM):
    """Planner on one device that decodes a waypoint at once, for one caller at a time."""

    decodes_in_steps = False  # a plan takes seven short passes, so that little is won

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
        """Build the planner as WaypointVLM does; the block planner's tensors are removed from `weights`."""
        kind = backbone.tokens.rows.dtype
        query, slots, blocks = (
            None if (tensor := weights.pop(BLOCK_PLANNER + name, None)) is None else tensor.to(kind)
            for name in ("query_resid", "slot_embed.weight", "block_embed.weight")
        )
        assert query is not None and slots is not None  # guaranteed by the layout
        self._query, self._slots, self._blocks = query, slots, blocks  # (K, width), (K, width), (M, width) or None
        super().__init__(backbone, layout, header, graphs, pool, head, sampling)
        self._decode = self._phase(self._answers, shared=1)

    def _begins(self, header: Sequence[int]) -> list[int]:
        return list(header)

    def _new_slots(self, num_waypoints: int) -> int:
        return self.layout.tokens_per_waypoint * num_waypoints

    def _decoded(self, cache: Tensor, prefixes: Prefixes) -> Tensor:
        given = prefixes.real, prefixes.lengths, prefixes.forced
        values: Tensor = self._decode(cache, *given, *(() if prefixes.bias is None else (prefixes.bias,)))
        return values

    def _answers(
        self,
        layers: Tensor,
        real: Tensor,
        lengths: Tensor,
        forced: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return sampled values (B, M, V) after the prompts in `layers` (depth, B, slots, 2 D).

        `real` (B, S) are the visible slots of the prefix.
        """
        prefix, rows = real.shape[1], self.layout.tokens_per_waypoint
        layers[:, :, prefix:] = 0  # unseen slots of the previous batch must be finite
        first = self._first_position(lengths)
        x = self._shifted(self._wp + self._query, 0).expand(len(lengths), -1, -1)
        values: list[Tensor] = []
        for block in range(forced.shape[1]):
            slots = torch.arange(block * rows, (block + 1) * rows, device=self.device)
            tables = rope_tables(first[:, None] + slots, self._text.head_dim)
            reached = torch.arange(layers.shape[2] - prefix, device=self.device) < (block + 1) * rows
            visible = bias_of(torch.cat([real, reached.expand(len(real), -1)], dim=1)[:, None])
            states = self._block(x, layers, prefix + block * rows, tables, visible)
            chosen, embedded = self._choose(states, forced[:, block], None if bias is None else bias[:, block])
            values.append(chosen)
            x = self._shifted(embedded, block + 1)
        return torch.stack(values, dim=1)

    def _shifted(self, tokens: Tensor, block: int) -> Tensor:
        """Return a block's input (..., K, width), with each addition rounded to the tokens' dtype."""
        x = tokens + self._slots
        return x if self._blocks is None else x + self._blocks[min(block, len(self._blocks) - 1)]

    def _block(self, x: Tensor, layers: Tensor, cursor: int, tables: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Return hidden states (B, K, width) of a block; keys and values are written to the slots from `cursor` on."""
        branch = None
        for layer, kv in zip(self._layers, layers, strict=True):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, *tables, self._text, kv[:, cursor : cursor + x.shape[1]])
            x, branch = self._finish(x, ops.attend(q, kv, bias), layer)
        normed = ops.add_norm(x, branch, self._norm)[1]
        if self.hidden is not None:
            self.hidden.append(normed)
        return normed

    def _choose(self, states: Tensor, forced: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return values (B, V) of a block's hidden states (B, K, width), and its embedded tokens (B, K, width).

        <wp> and <dur> are fixed; the other tokens are chosen independently.
        """
        batch, last = len(states), len(self._choices) - 1
        values, tokens, start = [], [self._wp.expand(batch, 1, -1)], 0
        while start <= last:  # one step per family, whose places are scored together
            choice = self._choices[start]
            stop = next((place for place in range(start, last + 1) if self._choices[place] is not choice), last + 1)
            shift = 1 + (start == last)  # <wp> precedes the values, and <dur> the duration
            scores = self._scores(states[:, start + shift : stop + shift], choice)
            scores = self._sampled(scores, bias, start, stop - start)
            own = forced[:, start:stop].reshape(-1)
            value, embedded = ops.pick(scores.flatten(0, 1), own, choice.embedded, None)
            values.append(value.view(batch, -1))
            tokens += [self._dur.expand(batch, 1, -1)] if start == last else []
            tokens.append(embedded.view(batch, stop - start, -1))
            start = stop
        return torch.cat(values, dim=1), torch.cat(tokens, dim=1)
