"""PaliGemma that reads images and prompts: SigLIP, Gemma 2B and the embeddings in use.

A planner and an action expert have one each or share one. A shared one is on the device once, and both use its image
features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wpray.models.batch_parts import BatchShape, padded
from wpray.models.config import IMAGE_TOKENS, GemmaConfig, SiglipConfig
from wpray.models.gemma import load_layers
from wpray.models.graphs import GraphCache
from wpray.models.siglip import Siglip
from wpray.models.stored_table import Table
from wpray.models.token_rows import TokenRows


class Backbone:
    """PaliGemma on one device, for one caller at a time."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        table: Tensor | Table,
        stem: str,
        vision: SiglipConfig,
        text: GemmaConfig,
        always: Sequence[int] = (),
        plans: bool = True,
        joint: bool = False,
        graphs: bool = False,
        pool: Any = None,
    ) -> None:
        """Build the backbone from a Checkpoint's `tensors` and `table`; the weights that it uses are removed.

        Names start with `stem`, such as `paligemma.`. Embeddings of the token ids `always` stay on the device. Without
        `plans`, only keys and values of the last layer are computed. `joint`: an action expert shares the backbone.
        `graphs` captures CUDA graphs, in `pool` if it is given.
        """
        self.config = text
        self.vision = Siglip(weights, stem + "model.", vision, convolves_on_cpu=joint)
        self.layers = load_layers(weights, stem + "model.language_model.", text)
        norm = weights.pop(stem + "model.language_model.norm.weight", None)
        self.device = self.layers[-1].qkv.device
        if not plans:
            norm, unread = None, torch.empty(0)
            self.layers[-1] = replace(self.layers[-1], out=unread, gate_up=unread, down=unread)
        self.norm = None if norm is None else 1 + norm.float()  # (width,)
        self.tokens = TokenRows(table, self.device, always)
        captured = graphs and self.device.type == "cuda"
        self._see: Callable[[Tensor], Tensor] = GraphCache(self._features, pool) if captured else self._features

    @torch.inference_mode()
    def features(self, seen: Tensor, shape: BatchShape) -> Tensor:
        """Return features (B, 512, width) of images (B, 2, 224, 224, 3) uint8 [base, wrist], in the shape's parts.

        If `seen` holds features already, return them unchanged.
        """
        if seen.is_floating_point():
            return seen
        images, parts = seen.to(self.device, non_blocking=True), []
        for rows, size in shape.parts(len(images)):
            part = self._see(padded(images[rows], size))
            parts.append(part[: rows.stop - rows.start].clone())  # a copy, because the next part may reuse its memory
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        return self.vision(images.flatten(0, 1)).view(images.shape[0], 2 * IMAGE_TOKENS, -1)
