"""File `metadata.pt`, which training saves beside a checkpoint: properties of its planner that no tensor shows.

It is a pickle, read under torch's restrictions: plain values only, no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from wpray.errors import BadInputError, shown
from wpray.models.config import BlockPlannerConfig
from wpray.models.token_layout import TokenLayout

_FILE = "metadata.pt"
_MAX_BYTES = 1_000_000


def read_metadata(checkpoint: Path, setting: str) -> Mapping[str, Any] | None:
    """Return the metadata.pt beside a checkpoint's file; None if there is none.

    Raise BadInputError if it is damaged, or holds anything but plain values.
    """
    path = checkpoint.with_name(_FILE)
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("larger than 1 MB")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, not a dict")
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"{setting}: {path}: not a checkpoint's metadata ({reason}); copy it again") from error
    return found


def check_planner(
    metadata: Mapping[str, Any] | None,
    planner: BlockPlannerConfig | None,
    tokens: TokenLayout,
    waypoints: int,
    what: str,
) -> None:
    """Raise BadInputError, beginning with `what`, if the metadata describe another planner than the tensors."""
    found: dict[str, object] = {"planner_mode": "token_ar", "goal_condition_mode": "none"}
    if planner is not None:
        found |= {
            "planner_mode": "block_ar",
            "planner_block0_cond": "none",  # the only value that wpray supports
            "planner_use_block_embed": planner.blocks is not None,
            "planner_block_width": planner.rows,
            "planner_proprio_dim": tokens.proprio_dim,
            "planner_num_waypoints": waypoints,
            "planner_use_gripper_token": tokens.gripper is not None,
            "planner_n_gripper_slots": tokens.state_dim - tokens.proprio_dim,
        }
    recorded = metadata or {}
    different = [name for name, value in found.items() if name in recorded and recorded[name] != value]
    if different:
        listed = ", ".join(f"{name} {shown(str(recorded[name]))} (not {found[name]})" for name in different)
        raise BadInputError(f"{what}: its {_FILE} records what wpray does not find or compute: {listed}")
