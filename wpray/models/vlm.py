"""The waypoint VLM: two images and a prompt in, seven waypoints out, greedily.

What the answer must contain is known beforehand: every waypoint is `<wp>`, eight proprio bins, `<dur>`, a duration.
The header and the first `<wp>` are part of the prefill; every later forced token is fed together with the sampled one
before it, so seven waypoints take 62 passes of one or two tokens; and only the ids that may come next are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models import ops
from wpray.models.config import IMAGE_TOKENS, GemmaConfig, VlmConfig
from wpray.models.gemma import GemmaLayer, aligned, bias_of, load_layers, padded_size, rope_tables
from wpray.models.graphs import GraphCache
from wpray.models.siglip import Siglip

_WAYPOINT, _DURATION = 256733, 256732  # the forced ids
_FIRST_BIN, _NUM_BINS = 257023, 256  # ids count down from here as bins count up
_FIRST_DURATION, _NUM_DURATIONS = 256767, 34
_NUM_BINS_PER_WAYPOINT = 8
_PASSES = _NUM_BINS_PER_WAYPOINT + 1  # sampled values of a waypoint
_TEXT_SIZES = (64, 96, 128, 192, 256, 512)  # prompt and answer's header together are padded to the next of these


@dataclass(frozen=True, slots=True)
class VlmOutput:
    """Sampled waypoints of a batch."""

    bins: Tensor  # (B, M, 8) int64, 0..255
    durations: Tensor  # (B, M) int64, control steps


@dataclass(frozen=True, slots=True)
class _Prefix:
    """One batch's inputs on the device."""

    images: Tensor  # (B, 2, 224, 224, 3) uint8
    tokens: Tensor  # (B, P) prompt, right-padded with 0
    lengths: Tensor  # (B,) prompt tokens
    forced: Tensor  # (B, M, 9) values to feed instead of the sampled ones where >= 0


@dataclass(frozen=True, slots=True)
class _Places:
    """Of the N tokens that may follow a prefix."""

    cos: Tensor  # (B, N, D / 2)
    sin: Tensor
    bias: Tensor  # (B, N, slots) float32: 0 where it may look, else -inf


class WaypointVLM:
    """A loaded VLM on one device. Not thread-safe: one caller at a time."""

    def __init__(
        self, weights: dict[str, Tensor], config: VlmConfig, header: Sequence[int], graphs: bool, pool: Any = None
    ) -> None:
        """`weights` as `Checkpoint.tensors` gives them; what is fused is taken out.

        `header` holds the ids of "Action: "; `graphs` captures on CUDA, in `pool` if one is given.
        """
        stem = "paligemma.model."
        self.config = config
        self._vision = Siglip(weights, stem, config.vision)
        self._layers = load_layers(weights, stem + "language_model.", config.text)
        self._norm = 1 + weights[stem + "language_model.norm.weight"].float()
        self._embedding = weights["paligemma.lm_head.weight"]
        self.device = self._embedding.device
        self._scale = self._embedding.new_tensor(config.text.width**0.5)
        self._answer = torch.tensor([*header, _WAYPOINT], device=self.device)
        bins = torch.arange(_NUM_BINS, device=self.device)
        self._bin_rows = self._embedding[_FIRST_BIN - bins].float()  # row b scores bin b
        self._duration_rows = self._embedding[_FIRST_DURATION - bins[:_NUM_DURATIONS]].float()
        self._graphs = GraphCache(self._answer_batch, pool) if graphs and self.device.type == "cuda" else None
        self.hidden: list[Tensor] | None = None  # set to a list to collect what each next token is read from

    @torch.inference_mode()
    def plan(
        self, images: Tensor, prompts: Sequence[Sequence[int]], num_waypoints: int = 7, forced: Tensor | None = None
    ) -> VlmOutput:
        """Waypoints for images (B, 2, 224, 224, 3) uint8 [base, wrist] and prompts (BOS first, any mix of lengths).

        `forced` (B, M, 9): feed these bins and durations instead of the sampled ones (to compare hidden states).
        Raises ValueError for a prompt over 500 tokens, torch.cuda.OutOfMemoryError when the batch is too large.
        """
        prefix = self._prefix(images, prompts, num_waypoints, forced)
        arguments = (prefix.images, prefix.tokens, prefix.lengths, prefix.forced)
        values = self._graphs(*arguments) if self._graphs is not None else self._answer_batch(*arguments)
        return VlmOutput(values[..., :_NUM_BINS_PER_WAYPOINT], values[..., _NUM_BINS_PER_WAYPOINT])

    def prompt_size(self, tokens: int) -> int:
        """The length that a prompt is padded to. Raises ValueError if it is too long."""
        header = len(self._answer)
        return padded_size(tokens + header, _TEXT_SIZES) - header

    def _prefix(
        self, images: Tensor, prompts: Sequence[Sequence[int]], num_waypoints: int, forced: Tensor | None
    ) -> _Prefix:
        size = self.prompt_size(max(map(len, prompts)))
        rows = torch.tensor([[*prompt, *[0] * (size - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        if forced is None:
            forced = torch.full((len(prompts), num_waypoints, _PASSES), -1)
        to = self.device
        return _Prefix(images.to(to, non_blocking=True), rows.to(to), lengths.to(to), forced.to(to))

    def _answer_batch(self, images: Tensor, tokens: Tensor, lengths: Tensor, forced: Tensor) -> Tensor:
        """(B, M, 9) sampled values; every shape is fixed, so the whole of it is one CUDA graph."""
        batch, num_waypoints = images.shape[0], forced.shape[1]
        cache, hidden, real = self._prefill(images, tokens, lengths, num_waypoints)
        places = self._places(lengths, cache, real)
        fed = 0  # tokens after the prefix
        values: list[Tensor] = []
        for waypoint in range(num_waypoints):
            for index in range(_PASSES):
                rows = self._duration_rows if index == _NUM_BINS_PER_WAYPOINT else self._bin_rows
                value = self._sample(hidden, rows, forced[:, waypoint, index])
                values.append(value)
                if waypoint == num_waypoints - 1 and index == _PASSES - 1:
                    break
                new = self._tokens_after(value, index)
                hidden = self._pass(new, fed, cache, places)
                fed += new.shape[1]
        return torch.stack(values, dim=1).view(batch, num_waypoints, _PASSES)

    def _sample(self, hidden: Tensor, rows: Tensor, forced: Tensor) -> Tensor:
        """(B,) the best of the values that `rows` score, or the forced one; a tie takes the larger value (lower id)."""
        scores = torch.matmul(hidden.float(), rows.T)
        best = rows.shape[0] - 1 - scores.flip(-1).argmax(-1)
        return torch.where(forced >= 0, forced, best)

    def _tokens_after(self, value: Tensor, index: int) -> Tensor:
        """(B, 1 or 2) the sampled token, with the forced one that must follow it."""
        if index < _NUM_BINS_PER_WAYPOINT - 1:
            return (_FIRST_BIN - value)[:, None]
        if index == _NUM_BINS_PER_WAYPOINT - 1:
            return torch.stack([_FIRST_BIN - value, torch.full_like(value, _DURATION)], dim=1)
        return torch.stack([_FIRST_DURATION - value, torch.full_like(value, _WAYPOINT)], dim=1)

    def _prefill(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, num_waypoints: int
    ) -> tuple[_Cache, Tensor, Tensor]:
        """Fills the cache with images, prompt and header; returns it, the last hidden state and who may be seen."""
        batch, padded = tokens.shape
        text = torch.cat([tokens, self._answer.expand(batch, -1)], dim=1)
        seen = self._vision(images.flatten(0, 1)).view(batch, 2 * IMAGE_TOKENS, -1)
        x = torch.cat([seen, self._embed(text)], dim=1)
        slots = aligned(x.shape[1] + 11 * num_waypoints - 2)  # the last duration is fed to nothing
        cache = _Cache(len(self._layers), batch, x.shape[1], slots, self.config.text, x)
        positions, bias, real = self._prefix_mask(lengths, padded, x)
        cos, sin = rope_tables(positions, self.config.text.head_dim)
        branch = None
        for index, layer in enumerate(self._layers):
            kv = cache.layers[index][:, : cache.prefix]
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            q = ops.queries(normed, layer.qkv, cos, sin, self.config.text, kv)
            if index == len(self._layers) - 1:
                # Of the last layer only the answer's own hidden states are read.
                fed = len(self._answer)
                x, q, bias = x[:, -fed:], q[:, -fed:].contiguous(), bias[:, -fed:]
            x, branch = self._finish(x, ops.attend(q, kv, bias), layer)
        return cache, self._final(x, branch), real

    def _prefix_mask(self, lengths: Tensor, padded: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (B, S), attention bias (B, S, S) and the prefix slots (B, S) that later tokens may see."""
        slots = torch.arange(x.shape[1], device=self.device)
        body = 2 * IMAGE_TOKENS + padded  # images and prompt; the header follows
        real = (slots < 2 * IMAGE_TOKENS + lengths[:, None]) | (slots >= body)
        positions = torch.where(slots >= body, slots - padded + lengths[:, None], slots)
        causal = (slots[None, :] < body) | (slots[None, :] <= slots[:, None])  # the header is causal
        visible = causal & ((slots[:, None] >= body) | (slots[None, :] < body))  # and unseen by what precedes it
        return positions, bias_of(visible[None] & real[:, None, :]), real

    def _places(self, lengths: Tensor, cache: _Cache, real: Tensor) -> _Places:
        """Of every token that may follow the prefix: its rotary tables and whom it sees. Always over all slots."""
        new = torch.arange(cache.slots - cache.prefix, device=self.device)
        first = 2 * IMAGE_TOKENS + lengths + len(self._answer)
        cos, sin = rope_tables(first[:, None] + new, self.config.text.head_dim)
        reached = (new <= new[:, None]).expand(len(lengths), -1, -1)
        before = real[:, None].expand(-1, len(new), -1)
        return _Places(cos, sin, bias_of(torch.cat([before, reached], dim=2)))

    def _pass(self, tokens: Tensor, fed: int, cache: _Cache, places: _Places) -> Tensor:
        """Feeds (B, T) tokens, the first `fed` after the prefix; returns the last one's hidden state (B, width)."""
        end, cursor, config = fed + tokens.shape[1], cache.prefix + fed, self.config.text
        tables, bias = (places.cos[:, fed:end], places.sin[:, fed:end]), places.bias[:, fed:end]
        x, branch = self._embed(tokens), None
        for layer, kv in zip(self._layers, cache.layers, strict=True):
            x, normed = ops.add_norm(x, branch, layer.norm_in)
            seen = ops.attend_new(normed, layer.qkv, tables, config, kv, cursor, bias, cache.workspace)
            x, branch = self._finish(x, seen, layer)
        return self._final(x, branch)

    @staticmethod
    def _finish(x: Tensor, seen: Tensor, layer: GemmaLayer) -> tuple[Tensor, Tensor]:
        """After the attention's output `seen`: the residual stream, and the MLP's branch that is still to be added."""
        x, normed = ops.add_norm(x, F.linear(seen, layer.out), layer.norm_post)
        return x, ops.feed_forward(normed, layer.gate_up, layer.down)

    def _final(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """The last token's hidden state (B, width) after the final norm."""
        normed = ops.add_norm(x, branch, self._norm)[1]
        if self.hidden is not None:
            self.hidden.append(normed)
        return normed[:, -1]

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self._embedding) * self._scale


class _Cache:
    """Keys beside values of every layer, (B, slots, 2 D) each; the prefix comes first."""

    def __init__(self, depth: int, batch: int, prefix: int, slots: int, config: GemmaConfig, like: Tensor) -> None:
        self.prefix, self.slots = prefix, slots
        self.layers = like.new_zeros((depth, batch, slots, 2 * config.head_dim))
        self.workspace = ops.workspace(self.layers)
