"""Tiny checkpoints of the real layout, whose outputs the golden data hold: each weight follows from its name."""

from __future__ import annotations

from pathlib import Path

from wpray.models.config import ActionExpertConfig, Precision, VlmConfig, action_expert_manifest, vlm_manifest
from wpray.models.synthetic import save, state_dict


def write_checkpoints(folder: Path, precision: Precision = "float32") -> None:
    """folder/{vlm,vlm_nested,ae}/model.safetensors."""
    vlm = state_dict(vlm_manifest(VlmConfig.tiny(), precision), seed=0)
    save(vlm, folder / "vlm")
    save({"paligemma_with_expert." + name: value for name, value in vlm.items()}, folder / "vlm_nested")
    save(state_dict(action_expert_manifest(ActionExpertConfig.tiny(), precision), seed=0), folder / "ae")
