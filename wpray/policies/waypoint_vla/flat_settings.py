"""The settings at the configuration's top level that are the Waypoint VLA's, where one of them depends on another.

The configuration itself reads this, so nothing is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpray.config import Config

_CHECKPOINTS = ("joint_checkpoint", "vlm_checkpoint", "ae_checkpoint")


def are_given(settings: Mapping[str, Any]) -> bool:
    """Return True if settings that name no policy mean this one, because they name a checkpoint."""
    return any(settings.get(name) for name in _CHECKPOINTS)


def checkpoints(config: Config) -> dict[str, str]:
    """Return the checkpoints by their roles, the planner's first."""
    named = {"joint": config.joint_checkpoint, "VLM": config.vlm_checkpoint, "action expert": config.ae_checkpoint}
    return {role: checkpoint for role, checkpoint in named.items() if checkpoint}


def check(config: Config, *, chosen: bool) -> None:
    """Raise ValueError for settings that contradict each other, or that the policy lacks if it is the chosen one."""
    if chosen:
        _check_files(config)
    if config.joint_checkpoint:
        _check_joint(config)
    if config.train_vision_encoder and config.vision_encoder_mode not in (None, "full"):
        mode = config.vision_encoder_mode
        raise ValueError(f"train_vision_encoder means vision_encoder_mode: full, not {mode}: give one of them")
    _check_adapter(config)
    if config.noise == "reference" and config.eval_seed is None:
        raise ValueError("noise: reference needs eval_seed, which seeds it")


def _check_files(config: Config) -> None:
    models = ("joint_checkpoint",) if config.joint_checkpoint else ("vlm_checkpoint", "ae_checkpoint")
    for name in (*models, "dataset_statistics_path"):
        if not getattr(config, name):
            raise ValueError(f"policy {config.policy} needs {name}")


def _check_joint(config: Config) -> None:
    for name in ("vlm_checkpoint", "ae_checkpoint"):
        if getattr(config, name):
            raise ValueError(f"joint_checkpoint and {name} exclude each other: give the one or the pair")
    if "vlm_precision" in config.model_fields_set and config.vlm_precision != config.precision:
        raise ValueError("vlm_precision is of a pair: a joint_checkpoint computes in precision; leave it out")


def _check_adapter(config: Config) -> None:
    if not config.lora_enabled:
        for name in ("runtime_merge", "use_ema", "allow_stale_ema_forensics"):
            if getattr(config, name):
                raise ValueError(f"{name} is of a LoRA adapter: set lora_enabled, or leave it out")
        return
    if not config.joint_checkpoint:
        raise ValueError("lora_enabled needs joint_checkpoint: merge the adapters of a pair into their models")
    for name in ("pretrained_weight_path", "lora_alpha"):
        if getattr(config, name) is None:
            raise ValueError(f"lora_enabled needs {name}")
