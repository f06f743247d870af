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
    Precision,
    TensorManifest,
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


def state_dict(manifest: TensorManifest, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of a manifest's names, shapes and dtypes."""
    return {
        name: torch.from_numpy(weight(name, shape, seed)).to(getattr(torch, dtype))
        for name, (shape, dtype) in manifest.items()
    }


def save(tensors: dict[str, torch.Tensor], folder: Path, file: str = "model.safetensors") -> None:
    """folder/FILE, marked as synthetic."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file, metadata=METADATA)


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "dense")  # of both Gemmas
VISION = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TABLE = "paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens"
FULL = ("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out", "duration_embed")
FULL_PARTS = ("multi_modal_projector", "block_planner")


def adapted_modules(
    names: list[str], gemmas: tuple[str, ...] = (".language_model.", ".gemma_expert."), vision: bool = False
) -> list[str]:
    """Linear layers of a model's tensors that LoRA wraps: of these Gemmas, and of the image encoder if wanted."""
    modules = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return [
        module
        for module in modules
        if (module.endswith(LINEAR) and any(part in module for part in gemmas))
        or (vision and ".encoder." in module and module.endswith(VISION))
    ]


def write_adapted(
    folder: Path,
    size: ActionExpertConfig,
    precision: Precision = "float32",
    rank: int = 4,
    vision: bool = False,
    file: str = "lora.safetensors",
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Write folder/base/model.safetensors and folder/run/FILE, an adapter beside it; return the adapter's tensors."""
    base = state_dict(action_expert_manifest(size, precision), seed=0)
    full = {name: own for name, own in base.items() if name.startswith(FULL) or any(p in name for p in FULL_PARTS)}
    untrained = ("proprio_encoder", "duration_embed", "block_planner")  # the base model has none of them
    save({name: own for name, own in base.items() if not name.startswith(untrained)}, folder / "base")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, like: torch.Tensor) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(like.dtype)

    adapter = {name: own + 0.01 * seed for name, own in full.items()}
    for module in adapted_modules(list(base), vision=vision):
        weight_ = base[f"{module}.weight"]
        rows, columns = weight_.shape
        adapter[f"{module}.lora_A.weight"] = draw(rank, columns, like=weight_)
        adapter[f"{module}.lora_B.weight"] = 0.3 * draw(rows, rank, like=weight_)
    table = base[TABLE]
    adapter[f"{EMBEDDING}.lora_embedding_A"] = 0.02 * draw(len(table), rank, like=table)
    adapter[f"{EMBEDDING}.lora_embedding_B"] = draw(rank, table.shape[1], like=table)
    save(adapter, folder / "run", file)
    return adapter


def merge_adapter(
    base: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """Return the merged model, by the specification: W + (B A) s, in float32, rounded and added in W's dtype."""
    whole = {**base, **{name: own for name, own in adapter.items() if ".lora_" not in name}}
    for name, low in adapter.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            own = whole[f"{module}.weight"]
            delta = adapter[f"{module}.lora_B.weight"].float() @ low.float() * scale
            whole[f"{module}.weight"] = own + delta.to(own.dtype)
    table = whole[TABLE]
    low, high = (adapter[f"{EMBEDDING}.lora_embedding_{name}"] for name in "AB")
    whole[TABLE] = table + ((low.double() @ high.double()).float() * scale).to(table.dtype)
    return whole
