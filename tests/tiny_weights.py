"""Tiny checkpoints of the real layout, whose outputs the golden data hold: each weight follows from its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from wpray.models.config import (
    ActionExpertConfig,
    BlockPlannerConfig,
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


Variant = Literal["a", "b"]  # the duration: in the norms' condition, or a token


def joint_size(variant: Variant) -> ActionExpertConfig:
    """Tiny."""
    return replace(ActionExpertConfig.tiny(), duration_embed=variant == "b")


def block_size(blocks: int | None = 7) -> ActionExpertConfig:
    """Tiny, with a block planner that has embeddings of its blocks, or none."""
    return replace(joint_size("b"), planner=BlockPlannerConfig(10, blocks))


def write_joint(
    folder: Path,
    variant: Variant | ActionExpertConfig,
    precision: Precision = "float32",
    seed: int = 0,
    file: str = "model.safetensors",
) -> None:
    """folder/FILE: a joint checkpoint."""
    size = joint_size(variant) if isinstance(variant, str) else variant
    save(state_dict(action_expert_manifest(size, precision), seed), folder, file)


def state_dict(manifest: Manifest, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of a manifest's names, shapes and dtypes."""
    return {
        name: torch.from_numpy(weight(name, shape, seed)).to(getattr(torch, dtype))
        for name, (shape, dtype) in manifest.items()
    }


def save(tensors: dict[str, torch.Tensor], folder: Path, file: str = "model.safetensors") -> None:
    """folder/FILE, marked as synthetic."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file, metadata=METADATA)
