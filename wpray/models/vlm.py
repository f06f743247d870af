"""Waypoint VLM: decoding of seven waypoints from two images and a prompt, greedily or sampled (sampling.py).

The form of an answer is fixed: every waypoint is `<wp>`, proprio bins (and a gripper token), `<dur>` and a duration
(token_layout.py). The header and the first `<wp>` are part of the prefill. Every later forced token is fed together
with the sampled one before it, so seven waypoints take 62 passes (newer layout: 55) of one or two tokens. Only the
possible next ids are scored. Prompts are read in parts, then a whole batch decodes together (batch_parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import ops
from wpray.models.backbone import Backbone
from wpray.models.batch_invariance import fingerprints, synthetic_requests
from wpray.models.batch_parts import BatchShape, KvCaches, padded, read_parts
from wpray.models.config import IMAGE_TOKENS, Precision
from wpray.models.gemma import GemmaLayer, aligned, bias_of, padded_size, rope_tables
from wpray.models.graphs import GraphCache
from wpray.models.lora import project
from wpray.models.plan_slots import PlanSlots, Prefixes
from wpray.models.sampling import GREEDY, Sampling
from wpray.models.staging import send
from wpray.models.stored_table import TableAdapter
from wpray.models.token_layout import TokenLayout

_TEXT_SIZES = (64, 96, 128, 192, 256, 512)  # padded sizes of a prompt with the answer's header

_Phase = Callable[..., Any]  # eager, or captured


@dataclass(frozen=True, slots=True)
class VlmOutput:
    """Sampled waypoints of a batch."""

    values: Tensor  # (B, M, V) int64, as the layout's `families` order them
    features: Tensor  # (B, 512, width) of the images

    @property
    def durations(self) -> Tensor:
        """(B, M) control steps."""
        return self.values[..., -1]


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Inputs of one batch on the device."""

    seen: Tensor  # (B, 512, width) image features
    tokens: Tensor  # (B, P) prompt, as rows of the embeddings on the device, right-padded with 0
    lengths: Tensor  # (B,) prompt tokens
    forced: Tensor  # (B, M, V) values to feed instead of the sampled ones where >= 0
    bias: Tensor | None  # (B, M, S) to add to the scores of a waypoint's values, one family after the other

    @property
    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is read."""
        return self.seen, self.tokens, self.lengths


@dataclass(frozen=True, slots=True)
class _Choice:
    """Values that a token is sampled from."""

    scoring: Tensor  # (N, width) float32: row v scores value v
    adapter: TableAdapter | None  # what is added to the scores
    embedded: Tensor  # (N, width) as it is fed


@dataclass(frozen=True, slots=True)
class _Places:
    """Places of a waypoint's tokens, in each row's own plan."""

    cos: Tensor  # (R, N, D / 2)
    sin: Tensor
    visible: Tensor  # (R, N, slots) float32: 0 for visible slots, else -inf
    slots: Tensor  # (R, N) int64 where their keys and values go


class WaypointVLM:
    """Planner on one device, for one caller at a time."""

    decodes_in_steps = True  # `start` and `advance` decode plans that did not start together

    def __init__(
        self,
        backbone: Backbone,
        layout: TokenLayout,
        header: Sequence[int],
        graphs: bool,
        pool: Any = None,
        head: Precision = "float32",
        sampling: Sampling = GREEDY,
    ) -> None:
        """Use a `backbone` that was loaded with `always` = `header` (the ids of "Action: ") and <wp>.

        `head` float32 multiplies hidden states and embeddings as float32; bfloat16 rounds the products to the weights'
        dtype, as some training branches do. `graphs` captures CUDA graphs, in `pool` if it is given.
        """
        assert backbone.norm is not None
        self.backbone, self.layout = backbone, layout
        self._layers, self._norm, self._tokens = backbone.layers, backbone.norm, backbone.tokens
        self.device, self._text = backbone.device, backbone.config
        self._rounds, self.sampling = head == "bfloat16", sampling
        self._answer = torch.tensor(self._tokens.places([self._begins(header)])[0], device=self.device)
        choices = {family: self._choice(family.ids) for family in dict.fromkeys(layout.families)}
        self._choices = [choices[family] for family in layout.families]
        self._dur, self._wp = self._tokens.embedded([layout.duration, layout.waypoint])
        self._caches = KvCaches(len(self._layers), self._text.head_dim, self._tokens.rows)
        self._under_way: dict[tuple[int, int], PlanSlots] = {}  # by slots of a row, waypoints of a plan
        self._pool, self._captures = pool, graphs and self.device.type == "cuda"
        self._read = self._phase(self._prefill)
        self._step = self._phase(partial(self._waypoint, last=False), shared=8)
        self._last_step = self._phase(partial(self._waypoint, last=True), shared=8)
        self.hidden: list[Tensor] | None = None  # a list collects the hidden states that tokens are read from

    def _phase(self, function: _Phase, shared: int = 0) -> _Phase:
        """Return `function`, captured if this planner captures graphs."""
        return GraphCache(function, self._pool, shared) if self._captures else function

    def _begins(self, header: Sequence[int]) -> list[int]:
        """Return the ids after a prompt, before the first sampled value."""
        return [*header, self.layout.waypoint]

    def _new_slots(self, num_waypoints: int) -> int:
        """Return the number of tokens that are fed later: all but the first <wp> and the last duration."""
        return self.layout.tokens_per_waypoint * num_waypoints - 2

    @torch.inference_mode()
    def plan(
        self,
        images: Tensor,
        prompts: Sequence[Sequence[int]],
        num_waypoints: int = 7,
        forced: Tensor | None = None,
        shape: BatchShape | None = None,
        bias: Tensor | None = None,
    ) -> VlmOutput:
        """Return waypoints for images (B, 2, 224, 224, 3) uint8 [base, wrist] and prompts (BOS first, any lengths).

        `forced` (B, M, V) are values to feed instead of the sampled ones, to compare hidden states. `shape` is the
        shape to compute in (None: the batch's own). `bias` (B, M, S) holds each request's `sampling.bias`, if sampling
        needs it. Raise ValueError for a prompt over 500 tokens,
        torch.cuda.OutOfMemoryError when the batch is too large.
        """
        shape = shape or BatchShape.whole(len(prompts))
        prefix = self._prefix(self.backbone.features(images, shape), prompts, num_waypoints, forced, bias)
        *_, values = self._run(prefix, shape)
        return VlmOutput(values[: len(prompts)].clone(), prefix.seen)

    @torch.inference_mode()
    def trace(self, start: int, stop: int, shape: BatchShape, prompt_size: int = 60, num_waypoints: int = 7) -> Tensor:
        """Return fingerprints (B, pieces) of every value behind the plans of these synthetic requests."""
        images, prompts, _ = synthetic_requests(start, stop, prompt_size)
        bias = torch.zeros((stop - start, num_waypoints, self.layout.scores)) if self.sampling.needs_bias else None
        prefix = self._prefix(self.backbone.features(images, shape), prompts, num_waypoints, None, bias)
        cache, hidden, values = self._run(prefix, shape)
        return fingerprints(*(part[: stop - start] for part in (*cache, hidden, values)))

    @torch.inference_mode()
    def start(
        self,
        images: Tensor,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        shape: BatchShape,
        num_waypoints: int = 7,
        bias: Tensor | None = None,
    ) -> tuple[PlanSlots, Tensor]:
        """Read prompts and images, whose plans take slots `rows` of plans under way; return these, and the features.

        `shape.rows` are the slots that there may be, always as many for prompts of one padded length. The other
        arguments, results and errors are those of `plan`.
        """
        reads = BatchShape(shape.reads, len(prompts))
        prefix = self._prefix(self.backbone.features(images, reads), prompts, num_waypoints, None, bias)
        cache = self._cache(prefix, shape.rows)
        hidden, real = read_parts(self._read, reads, prefix.read, cache, rows)
        plans = self._plan_slots(cache, real.shape[1], num_waypoints)
        plans.put(
            rows,
            Prefixes(real, hidden, prefix.lengths, prefix.forced, prefix.bias),
            self._first_position(prefix.lengths),
        )
        return plans, prefix.seen

    @torch.inference_mode()
    def advance(self, plans: PlanSlots, rows: int, last: bool = False) -> None:
        """Decode the next waypoint of the first `rows` slots; nothing follows it if it is the `last` of all of them."""
        step = self._last_step if last else self._step
        plans.note(*step(*plans.step(rows).tensors))

    def _run(self, prefix: _Prefix, shape: BatchShape) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cache (depth, rows, slots, 2 D), last hidden states (rows, width) and values (rows, M, V)."""
        cache = self._cache(prefix, shape.rows)
        hidden, real = read_parts(self._read, shape, prefix.read, cache)
        lengths, forced = padded(prefix.lengths, shape.rows), padded(prefix.forced, shape.rows)
        bias = None if prefix.bias is None else padded(prefix.bias, shape.rows)
        return cache, hidden, self._decoded(cache, Prefixes(real, hidden, lengths, forced, bias))

    def _cache(self, prefix: _Prefix, rows: int) -> Tensor:
        """Return the cache (depth, rows, slots, 2 D) of plans that start so."""
        length = 2 * IMAGE_TOKENS + prefix.tokens.shape[1] + len(self._answer)
        return self._caches.take(rows, aligned(length + self._new_slots(prefix.forced.shape[1])))

    def _decoded(self, cache: Tensor, prefixes: Prefixes) -> Tensor:
        """Return sampled values (R, M, V) after the prompts that have been read into `cache` (depth, R, slots, 2 D)."""
        rows, num_waypoints = prefixes.forced.shape[:2]
        plans = self._plan_slots(cache, prefixes.real.shape[1], num_waypoints)
        plans.put(range(rows), prefixes, self._first_position(prefixes.lengths))
        for waypoint in range(num_waypoints):
            self.advance(plans, rows, last=waypoint == num_waypoints - 1)
        return plans.values[:rows]

    def _plan_slots(self, cache: Tensor, prefix: int, num_waypoints: int) -> PlanSlots:
        """Return the slots of plans over a cache (depth, R, slots, 2 D), R at least."""
        key = cache.shape[2], num_waypoints
        known = self._under_way.get(key)
        if known is None or known.layers.data_ptr() != cache.data_ptr() or known.layers.shape[1] < cache.shape[1]:
            shape = (num_waypoints, len(self._choices), self.layout.scores)
            known = self._under_way[key] = PlanSlots(cache, prefix, self._text.head_dim, self._text.width, shape)
        return known

    def _first_position(self, lengths: Tensor) -> Tensor:
        """Return the position (B,) of the first token after prompts of `lengths` (B,)."""
        return 2 * IMAGE_TOKENS + lengths + len(self._answer)

    def prompt_size(self, tokens: int) -> int:
        """Return the padded length of a prompt. Raise ValueError if it is too long."""
        header = len(self._answer)
        return padded_size(tokens + header, _TEXT_SIZES) - header

    def _prefix(
        self,
        seen: Tensor,
        prompts: Sequence[Sequence[int]],
        num_waypoints: int,
        forced: Tensor | None,
        bias: Tensor | None,
    ) -> _Prefix:
        size = self.prompt_size(max(map(len, prompts)))
        rows = torch.tensor([[*row, *[0] * (size - len(row))] for row in self._tokens.places(prompts)])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        if forced is None:
            forced = torch.full((len(prompts), num_waypoints, len(self._choices)), -1, device=self.device)
        to = self.device
        own_bias = None if bias is None else send(bias, to)
        return _Prefix(seen, send(rows, to), send(lengths, to), send(forced, to), own_bias)

    def _waypoint(
        self,
        layers: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor,
        hidden: Tensor,
        waypoint: Tensor,
        forced: Tensor,
        bias: Tensor | None = None,
        *,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return a waypoint's values (R, V) and the hidden states (R, width) after it; the inputs are a WaypointStep's.

        After the `last` waypoint of a plan, no token is fed, and the hidden states are those before its last value.
        """
        rows, number = torch.arange(len(hidden), device=self.device), waypoint.clamp(max=forced.shape[1] - 1)
        places = self._places(number, layers.shape[2], cos, sin, visible)
        workspace, own = ops.workspace(layers), forced[rows, number]
        own_bias = None if bias is None else bias[rows, number]
        fed = 0  # tokens of this waypoint
        values: list[Tensor] = []
        for index, choice in enumerate(self._choices):
            scores = self._sampled(self._scores(hidden, choice), own_bias, index)
            value, new = ops.pick(scores, own[:, index], choice.embedded, self._follower(index))
            values.append(value)
            if last and len(values) == len(self._choices):
                break
            hidden = self._pass(new, fed, layers, places, workspace)
            fed += new.shape[1]
        return torch.stack(values, dim=1), hidden

    def _places(self, number: Tensor, slots: int, cos: Tensor, sin: Tensor, visible: Tensor) -> _Places:
        """Return the places of the tokens of each row's waypoint `number` (R,), from the tables of all tokens."""
        size, new = self.layout.tokens_per_waypoint, visible.shape[1]
        rows = torch.arange(len(number), device=self.device)[:, None]
        # What follows a plan's last waypoint is not read, so it may lie anywhere in the row's own slots.
        at = (number[:, None] * size + torch.arange(size, device=self.device)).clamp(max=new - 1)
        return _Places(cos[rows, at], sin[rows, at], visible[rows, at], at + (slots - new))

    def _choice(self, ids: Sequence[int]) -> _Choice:
        return _Choice(*self._tokens.scoring(ids), self._tokens.embedded(ids))

    def _scores(self, hidden: Tensor, choice: _Choice) -> Tensor:
        """Return scores (B, N) float32 of hidden states (B, width)."""
        scores, adapter = self._rounded(ops.linear(hidden, choice.scoring), hidden), choice.adapter
        if adapter is None:
            return scores
        low = self._rounded(ops.linear(hidden, adapter.high), hidden)
        added = self._rounded(ops.linear(low, adapter.low), hidden)
        return self._rounded(scores + self._rounded(added * adapter.scale, hidden), hidden)

    def _rounded(self, scores: Tensor, hidden: Tensor) -> Tensor:
        return scores.to(hidden.dtype).float() if self._rounds else scores

    def _sampled(self, scores: Tensor, bias: Tensor | None, first: int, places: int = 1) -> Tensor:
        """Return the scores (..., N) of a waypoint's values from number `first` on, as the best of them is a sample.

        `bias` (B, S) is the waypoint's own.
        """
        if bias is None:
            return scores
        start, count = self.layout.first_score(first), scores.shape[-1]
        own = bias[:, start : start + places * count].reshape(scores.shape)
        return scores / self.sampling.temperature + own if self.sampling.temperature else scores + own

    @torch.inference_mode()
    def best(self, hidden: Tensor, index: int) -> Tensor:
        """Return the values (B,) that hidden states (B, width) choose as a waypoint's value number `index`."""
        scores = self._scores(hidden, self._choices[index])
        return scores.shape[1] - 1 - scores.flip(-1).argmax(-1)

    def _follower(self, index: int) -> Tensor | None:
        """Return the forced token (width,) after a waypoint's value number `index`, or None."""
        last = len(self._choices) - 1
        return self._wp if index == last else self._dur if index == last - 1 else None

    def _prefill(self, seen: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read image features, prompt and header.

        Return keys beside values (depth, B, S, 2 D), the last token's hidden state (B, width) and the mask of real
        slots (B, S).
        """
        batch, size = tokens.shape
        text = torch.cat([tokens, self._answer.expand(batch, -1)], dim=1)
        x = torch.cat([seen, F.embedding(text, self._tokens.rows)], dim=1)
        keys_values = x.new_empty((len(self._layers), batch, x.shape[1], 2 * self._text.head_dim))
        positions, bias, real = self._prefix_mask(lengths, size, x)
        cos, sin = rope_tables(positions, self._text.head_dim)
        branch = None
        for index, (layer, kv) in enumerate(zip(self._layers, keys_values, strict=True)):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, cos, sin, self._text, kv)
            if index == len(self._layers) - 1:
                # Only the answer's hidden states of the last layer are needed.
                fed = len(self._answer)
                x, q, bias = x[:, -fed:], q[:, -fed:].contiguous(), bias[:, -fed:]
            x, branch = self._finish(x, ops.attend(q, kv, bias), layer)
        return keys_values, self._final(x, branch), real

    def _prefix_mask(self, lengths: Tensor, size: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions (B, S), attention bias (B, S, S) and the prefix slots (B, S) visible to later tokens."""
        slots = torch.arange(x.shape[1], device=self.device)
        body = 2 * IMAGE_TOKENS + size  # images and prompt; the header follows
        real = (slots < 2 * IMAGE_TOKENS + lengths[:, None]) | (slots >= body)
        positions = torch.where(slots >= body, slots - size + lengths[:, None], slots)
        causal = (slots[None, :] < body) | (slots[None, :] <= slots[:, None])  # the header is causal
        visible = causal & ((slots[:, None] >= body) | (slots[None, :] < body))  # and not visible to earlier tokens
        return positions, bias_of(visible[None] & real[:, None, :]), real

    def _pass(self, x: Tensor, fed: int, layers: Tensor, places: _Places, workspace: Any) -> Tensor:
        """Feed embedded tokens (R, T, width), the first being number `fed` of its waypoint; return the hidden state."""
        own, config = slice(fed, fed + x.shape[1]), self._text
        tables, visible = (places.cos[:, own], places.sin[:, own]), places.visible[:, own]
        cursor = places.slots[:, fed].clamp(max=layers.shape[2] - x.shape[1])
        branch = None
        for layer, kv in zip(self._layers, layers, strict=True):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            seen = ops.attend_new(normed, layer.qkv, tables, config, kv, cursor, visible, workspace)
            x, branch = self._finish(x, seen, layer)
        return self._final(x, branch)

    @staticmethod
    def _finish(x: Tensor, seen: Tensor, layer: GemmaLayer) -> tuple[Tensor, Tensor]:
        """Return the residual stream after the attention's output `seen`, and the MLP's branch to be added to it."""
        x, normed = ops.add_norm(x, project(seen, layer.out), layer.norm_post)
        return x, ops.feed_forward(normed, layer.gate_up, layer.down)

    def _final(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """Return the last token's hidden state (B, width) after the final norm."""
        normed = ops.add_norm(x, branch, self._norm)[1]
        if self.hidden is not None:
            self.hidden.append(normed)
        return normed[:, -1]
