"""Tiny checkpoints of the real layout, whose outputs the golden data hold: each weight follows from its name."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from wpray.models.config import (
    ActionExpertConfig,
    Manifest,
    Precision,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)

_SHARP = ("q_proj", "k_proj", "o_proj", "down_proj")  # larger, so that greedy decoding has clear winners


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed])).standard_normal(
        shape, dtype=np.float32
    )
    if "lm_head" in name or "embed_tokens" in name:
        return values * np.float32(0.01)
    if len(shape) > 1:
        gain = np.float32(3.0 if any(part in name for part in _SHARP) else 1.0)
        return values * (gain / np.sqrt(np.prod(shape[1:], dtype=np.float64)).astype(np.float32))
    if name.endswith("bias"):
        return values * np.float32(0.02)
    if "layer_norm" in name or "post_layernorm" in name:
        return np.float32(1) + values * np.float32(0.1)
    return values * np.float32(0.1)


def state_dict(manifest: Manifest, seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(weight(name, shape, seed)).to(getattr(torch, dtype))
        for name, (shape, dtype) in manifest.items()
    }


def write_checkpoints(folder: Path, precision: Precision = "float32") -> None:
    """folder/{vlm,vlm_nested,ae}/model.safetensors."""
    vlm = state_dict(vlm_manifest(VlmConfig.tiny(), precision))
    nested = {"paligemma_with_expert." + name: value for name, value in vlm.items()}
    expert = state_dict(action_expert_manifest(ActionExpertConfig.tiny(), precision))
    for name, tensors in (("vlm", vlm), ("vlm_nested", nested), ("ae", expert)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name / "model.safetensors")
