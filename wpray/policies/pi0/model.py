"""The model of Transformers, unchanged, as a function of fixed shapes from host arrays to chunks of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.utils import logging

from wpray.errors import BadInputError, wrapping_errors
from wpray.models.batch_invariance import fingerprints, synthetic_requests
from wpray.models.batch_parts import BatchShape
from wpray.models.config import Precision
from wpray.models.graphs import GraphCache
from wpray.policies.pi0.checkpoint import PixelScale
from wpray.policies.pi0.spec import CHECKPOINT
from wpray.policies.pi0.tensor_names import Shapes
from wpray.types import ACTION_DIM, POLICY_IMAGE_SIZE, PROPRIO_DIM, IntArray


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Inputs of a batch."""

    images: Tensor  # (B, C, 224, 224, 3) uint8 on the device
    prompts: Sequence[IntArray]
    states: Tensor  # (B, S)
    noise: Tensor  # (B, H, A)


def read_config(data: Mapping[str, Any], path: Path) -> PI0Config:
    """Return Transformers' configuration of `data`. Raise BadInputError if it is none, or does not fit LIBERO."""

    def refused(error: Exception) -> BadInputError:  # its validators raise many kinds
        reason = " ".join(str(error).split())[:300]
        return BadInputError(f"{CHECKPOINT}: {path}: not a configuration of pi0 ({reason}); copy it from its source")

    with wrapping_errors(refused):
        config = PI0Config.from_dict(dict(data))
        side = config.vlm_config.vision_config.image_size
    if side != POLICY_IMAGE_SIZE:
        found = f"its images have {side} pixels, and only {POLICY_IMAGE_SIZE} are supported"
        raise BadInputError(f"{CHECKPOINT}: {path}: {found}; name another checkpoint")
    for name, least in (("max_state_dim", PROPRIO_DIM), ("max_action_dim", ACTION_DIM)):
        if (found := getattr(config, name)) < least:
            raise BadInputError(f"{CHECKPOINT}: {path}: {name} is {found}, and LIBERO needs {least} or more")
    return config


def expected_shapes(config: PI0Config) -> Shapes:
    """Return the shapes of all tensors of a checkpoint, by Transformers' names."""
    with torch.device("meta"):
        model = PI0ForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_model(folder: Path, config: PI0Config, precision: Precision, device: torch.device) -> Any:
    """Return the model with its weights. Raise BadInputError if Transformers misses a tensor or has one too many."""
    logging.disable_progress_bar()
    model, report = PI0ForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, precision),
        local_files_only=True,
        output_loading_info=True,
        attn_implementation="sdpa",
    )
    wrong = {kind: sorted(map(str, found)) for kind, found in report.items() if found}
    if wrong:
        raise BadInputError(f"{CHECKPOINT}: {folder}: Transformers does not load it whole ({wrong!r:.500})")
    for tensor in model.parameters():
        # A copy even on a CPU: there, tensors lie in the mapped file, and the bits of a product depend on alignment.
        tensor.data = tensor.data.to(device, copy=True)
    return model.eval().requires_grad_(False).to(device)


class FlowModel:
    """Sampler of chunks, in batches that are padded to a shape."""

    def __init__(
        self, model: Any, pixels: PixelScale, cameras: int, prompt_size: int, steps: int | None, graphs: bool
    ) -> None:
        """Prepare for prompts of at most `prompt_size` tokens; with `graphs`, each shape is captured once."""
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.steps = steps or self.config.num_inference_steps
        self._model, self._cameras, self._prompt_size = model, cameras, prompt_size
        # Shaped for images (B, C, 3, 224, 224).
        self._shift, self._scale = (
            torch.from_numpy(values).to(self.device).view(3, 1, 1) for values in (pixels.shift, pixels.scale)
        )
        vision = self.config.vlm_config.vision_config
        self._image_tokens = cameras * (vision.image_size // vision.patch_size) ** 2
        self._run = GraphCache(self._sampled) if graphs else self._sampled

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Actions of a chunk, and numbers of an action."""
        return self.config.chunk_size, self.config.max_action_dim

    def sample(self, inputs: ModelInputs, shape: BatchShape) -> Tensor:
        """Return normalized chunks (B, H, A) on the device, computed in `shape`."""
        return self._run(*self.batch(inputs, shape))[: len(inputs.prompts)].clone()

    def batch(self, inputs: ModelInputs, shape: BatchShape) -> list[Tensor]:
        """Return images, tokens, mask, states and noise on the device, padded to the rows of `shape`."""
        given = (inputs.images, *self._tokens(inputs.prompts), inputs.states, inputs.noise)
        # Rows of padding repeat the last, because a row whose tokens are all masked would be no number.
        rows = torch.arange(shape.rows).clamp(max=len(inputs.prompts) - 1)
        return [tensor[rows.to(tensor.device)].to(self.device, non_blocking=True) for tensor in given]

    def trace(self, start: int, stop: int, shape: BatchShape, prompt_size: int) -> Tensor:
        """Return fingerprints of the chunks of synthetic requests with these numbers.

        A sum that is split otherwise anywhere before changes some of the thousands of numbers of these chunks.
        """
        images, prompts, noise = synthetic_requests(start, stop, prompt_size, *self.noise_shape)
        inputs = ModelInputs(
            images[:, : self._cameras].to(self.device),
            [np.array(prompt) % self._image_token for prompt in prompts],
            noise[:, 0, :1].expand(-1, self.config.max_state_dim),
            noise,
        )
        return fingerprints(self.sample(inputs, shape))

    @property
    def _image_token(self) -> int:
        return int(self.config.vlm_config.image_token_id)

    def _tokens(self, prompts: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
        """Return tokens and mask (B, T): those of the images, those of the prompts, padding."""
        tokens = np.zeros((len(prompts), self._image_tokens + self._prompt_size), np.int64)
        mask = np.zeros_like(tokens)
        tokens[:, : self._image_tokens] = self._image_token
        for row, prompt in enumerate(prompts):
            end = self._image_tokens + len(prompt)
            tokens[row, self._image_tokens : end] = prompt
            mask[row, :end] = 1
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    def _sampled(self, images: Tensor, tokens: Tensor, mask: Tensor, states: Tensor, noise: Tensor) -> Tensor:
        pixels = (images.permute(0, 1, 4, 2, 3).float() - self._shift) / self._scale
        seen = torch.ones(images.shape[:2], dtype=torch.bool, device=self.device)
        chunks: Tensor = self._model.sample_actions(
            state=states.to(self.dtype),
            input_ids=tokens,
            pixel_values=pixels.contiguous().to(self.dtype),
            noise=noise.to(self.dtype),
            attention_mask=mask,
            pixel_attention_mask=seen,
            num_steps=self.steps,
        )
        return chunks.float()
