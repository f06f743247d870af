"""Checkpoints of a run, as its run.json states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings that named checkpoints before a policy's spec did, in the order in which rows took theirs.
_SETTINGS = {"joint": "joint_checkpoint", "VLM": "vlm_checkpoint", "action expert": "ae_checkpoint"}


def checkpoints_of(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the checkpoints of the run that run.json describes, by their roles in the policy."""
    spec = info.get("policy_spec")
    stated = spec.get("checkpoints") if isinstance(spec, Mapping) else None
    if not isinstance(stated, Mapping):
        config = info["config"]
        stated = {role: config[name] for role, name in _SETTINGS.items() if config.get(name)}
    return {str(role): str(checkpoint) for role, checkpoint in stated.items()}
