"""Tiny checkpoints of the real layout, whose outputs the golden data hold: each weight follows from its name."""

from __future__ import annotations

from pathlib import Path

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
from wpray.models.random_weights import METADATA, weight


def write_checkpoints(folder: Path, precision: Precision = "float32") -> None:
    """folder/{vlm,vlm_nested,ae}/model.safetensors."""
    vlm = state_dict(vlm_manifest(VlmConfig.tiny(), precision), seed=0)
    save(vlm, folder / "vlm")
    save({"paligemma_with_expert." + name: value for name, value in vlm.items()}, folder / "vlm_nested")
    save(state_dict(action_expert_manifest(ActionExpertConfig.tiny(), precision), seed=0), folder / "ae")


def state_dict(manifest: Manifest, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of a manifest's names, shapes and dtypes."""
    return {
        name: torch.from_numpy(weight(name, shape, seed)).to(getattr(torch, dtype))
        for name, (shape, dtype) in manifest.items()
    }


def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """folder/model.safetensors, marked as synthetic."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata=METADATA)
