"""Waypoint VLM: decoding of seven waypoints from two images and a prompt, greedily or sampled (sampling.py).

The form of an answer is fixed: every waypoint is `<wp>`, proprio bins (and a gripper token), `<dur>` and a duration
(token_layout.py). The header and the first `<wp>` are part of the prefill. Every later forced token is fed together
with the sampled one before it, so seven waypoints take 62 passes (newer layout: 55) of one or two tokens. Only the
possible next ids are scored. Prompts are read in parts, then a whole batch decodes together (batch_parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from wpray.models.sampling import GREEDY, Sampling
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


@dataclass(frozen=True, slots=True)
class _Choice:
    """Values that a token is sampled from."""

    scoring: Tensor  # (N, width) float32: row v scores value v
    adapter: TableAdapter | None  # what is added to the scores
    embedded: Tensor  # (N, width) as it is fed


@dataclass(frozen=True, slots=True)
class _KeyValues:
    """Keys beside values of every layer for decoding, with the prefix's slots first."""

    layers: Tensor  # (depth, B, slots, 2 D)
    prefix: int
    workspace: Any


@dataclass(frozen=True, slots=True)
class _Places:
    """Rotary tables and masks of the N tokens that may follow a prefix."""

    cos: Tensor  # (B, N, D / 2)
    sin: Tensor
    bias: Tensor  # (B, N, slots) float32: 0 for visible slots, else -inf


class WaypointVLM:
    """Planner on one device, for one caller at a time."""

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
        captured = graphs and self.device.type == "cuda"
        self._read: _Phase = GraphCache(self._prefill, pool) if captured else self._prefill
        self._decode: _Phase = GraphCache(self._answers, pool, shared=1) if captured else self._answers
        self.hidden: list[Tensor] | None = None  # a list collects the hidden states that tokens are read from

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

    def _run(self, prefix: _Prefix, shape: BatchShape) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cache (depth, rows, slots, 2 D), last hidden states (rows, width) and values (rows, M, V)."""
        num_waypoints = prefix.forced.shape[1]
        length = 2 * IMAGE_TOKENS + prefix.tokens.shape[1] + len(self._answer)
        cache = self._caches.take(shape.rows, aligned(length + self._new_slots(num_waypoints)))
        hidden, real = read_parts(self._read, shape, (prefix.seen, prefix.tokens, prefix.lengths), cache)
        given = (prefix.lengths, prefix.forced, *(() if prefix.bias is None else (prefix.bias,)))
        return cache, hidden, self._decode(cache, real, hidden, *(padded(part, shape.rows) for part in given))

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
            forced = torch.full((len(prompts), num_waypoints, len(self._choices)), -1)
        to = self.device
        return _Prefix(seen, rows.to(to), lengths.to(to), forced.to(to), None if bias is None else bias.to(to))

    def _answers(
        self,
        layers: Tensor,
        real: Tensor,
        hidden: Tensor,
        lengths: Tensor,
        forced: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return sampled values (B, M, V) after the prompts in `layers` (depth, B, slots, 2 D).

        `real` (B, S) are the visible slots of the prefix; the first value is read from `hidden` (B, width).
        """
        batch, num_waypoints = forced.shape[:2]
        cache = _KeyValues(layers, real.shape[1], ops.workspace(layers))
        layers[:, :, cache.prefix :] = 0  # unseen slots of the previous batch must be finite
        places = self._places(lengths, cache, real)
        fed = 0  # tokens after the prefix
        values: list[Tensor] = []
        for waypoint in range(num_waypoints):
            for index, choice in enumerate(self._choices):
                follower = self._follower(index)
                scores = self._sampled(self._scores(hidden, choice), bias, waypoint, index)
                value, new = ops.pick(scores, forced[:, waypoint, index], choice.embedded, follower)
                values.append(value)
                if len(values) == num_waypoints * len(self._choices):
                    break
                hidden = self._pass(new, fed, cache, places)
                fed += new.shape[1]
        return torch.stack(values, dim=1).view(batch, num_waypoints, len(self._choices))

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

    def _sampled(self, scores: Tensor, bias: Tensor | None, waypoint: int, first: int, places: int = 1) -> Tensor:
        """Return the scores (..., N) of a waypoint's values from number `first` on, as the best of them is a sample."""
        if bias is None:
            return scores
        start, count = self.layout.first_score(first), scores.shape[-1]
        own = bias[:, waypoint, start : start + places * count].reshape(scores.shape)
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

    def _places(self, lengths: Tensor, cache: _KeyValues, real: Tensor) -> _Places:
        """Return rotary tables and masks of every token that may follow the prefix, over all slots."""
        new = torch.arange(cache.layers.shape[2] - cache.prefix, device=self.device)
        first = 2 * IMAGE_TOKENS + lengths + len(self._answer)
        cos, sin = rope_tables(first[:, None] + new, self._text.head_dim)
        reached = (new <= new[:, None]).expand(len(lengths), -1, -1)
        before = real[:, None].expand(-1, len(new), -1)
        return _Places(cos, sin, bias_of(torch.cat([before, reached], dim=2)))

    def _pass(self, x: Tensor, fed: int, cache: _KeyValues, places: _Places) -> Tensor:
        """Feed embedded tokens (B, T, width), the first being `fed` after the prefix. Return the last hidden state."""
        end, cursor, config = fed + x.shape[1], cache.prefix + fed, self._text
        tables, bias = (places.cos[:, fed:end], places.sin[:, fed:end]), places.bias[:, fed:end]
        branch = None
        for layer, kv in zip(self._layers, cache.layers, strict=True):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            seen = ops.attend_new(normed, layer.qkv, tables, config, kv, cursor, bias, cache.workspace)
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
