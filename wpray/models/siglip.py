"""Vision tower of SigLIP and PaliGemma's projector, as free functions on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wpray.models.config import IMAGE_SIZE, IMAGE_TOKENS, PATCH, SiglipConfig
from wpray.models.lora import Weight, project, take_weight

_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class _Affine:
    weight: Tensor
    bias: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, _EPS)


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Weight  # an adapter may stand beside it
    bias: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Block:
    norm1: _Affine
    qkv: _Linear
    out: _Linear
    norm2: _Affine
    fc1: _Linear
    fc2: _Linear


class Siglip:
    """Encoder of images as features in the text model's width."""

    def __init__(
        self, weights: dict[str, Tensor], stem: str, config: SiglipConfig, convolves_on_cpu: bool = False
    ) -> None:
        """Build the encoder from `weights` by checkpoint name; `stem` ends in 'model.'.

        `convolves_on_cpu`: torch's convolution embeds patches on a CPU, as in the references of joint models. Later
        layers amplify its rounding tenfold, beyond the tolerance of their recorded numbers.
        """

        tower = stem + "vision_tower.vision_model."
        self._heads, self._convolves_on_cpu = config.heads, convolves_on_cpu
        # A patch embedding is a convolution without overlap, hence one matrix product over flattened patches.
        patch = _take_affine(weights, tower + "embeddings.patch_embedding")
        self._patch = _Affine(patch.weight.flatten(1), patch.bias)
        self._position = weights.pop(tower + "embeddings.position_embedding.weight")
        self._blocks = [_take_block(weights, f"{tower}encoder.layers.{index}.") for index in range(config.depth)]
        self._post = _take_affine(weights, tower + "post_layernorm")
        self._projector = _take_affine(weights, stem + "multi_modal_projector.linear")

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, 256, width) of images (N, 224, 224, 3) uint8."""
        x = (self._embedded(images) + self._position).to(self._post.weight.dtype)
        for block in self._blocks:
            x = x + block.out.linear(self._attend(block, block.norm1.norm(x)))
            x = x + block.fc2.linear(F.gelu(block.fc1.linear(block.norm2.norm(x)), approximate="tanh"))
        return self._projector.linear(self._post.norm(x))

    def _embedded(self, images: Tensor) -> Tensor:
        """Return the embeddings (N, 256, width) of patches, float32."""
        if images.is_cuda or not self._convolves_on_cpu:
            return self._patch.linear(_patches(images))
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        kernel = self._patch.weight.view(-1, 3, PATCH, PATCH)
        return F.conv2d(pixels, kernel, self._patch.bias, stride=PATCH).flatten(2).transpose(1, 2)

    def _attend(self, block: _Block, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = block.qkv.linear(x).view(batch, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)


def _take_block(weights: dict[str, Tensor], stem: str) -> _Block:
    return _Block(
        norm1=_take_affine(weights, stem + "layer_norm1"),
        qkv=_take_linear(weights, *(f"{stem}self_attn.{name}_proj" for name in "qkv")),
        out=_take_linear(weights, stem + "self_attn.out_proj"),
        norm2=_take_affine(weights, stem + "layer_norm2"),
        fc1=_take_linear(weights, stem + "mlp.fc1"),
        fc2=_take_linear(weights, stem + "mlp.fc2"),
    )


def _take_affine(weights: dict[str, Tensor], name: str) -> _Affine:
    return _Affine(weights.pop(name + ".weight"), weights.pop(name + ".bias"))


def _take_linear(weights: dict[str, Tensor], *names: str) -> _Linear:
    return _Linear(take_weight(weights, *names), torch.cat([weights.pop(name + ".bias") for name in names]))


def _patches(images: Tensor) -> Tensor:
    """Return patches (N, 256, 588) float32 in [-1, 1] of images; values are in channel, row, column order."""
    count, side = images.shape[0], IMAGE_SIZE // PATCH
    tiles = images.view(count, side, PATCH, side, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return tiles.reshape(count, IMAGE_TOKENS, 3 * PATCH * PATCH).float() / 127.5 - 1.0
