"""Loading of checkpoints to a device, as the two models of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wpray.models.action_expert import ActionExpert
from wpray.models.backbone import Backbone
from wpray.models.block_planner import BlockPlanner
from wpray.models.checkpoint import Checkpoint
from wpray.models.config import ActionExpertConfig, Precision, VlmConfig
from wpray.models.layouts import ModelFiles
from wpray.models.sampling import GREEDY, Sampling
from wpray.models.stored_table import Table
from wpray.models.token_layout import TokenLayout
from wpray.models.vlm import WaypointVLM

VLM_STEM = "paligemma."
EXPERT_STEM = "paligemma_with_expert.paligemma."


@dataclass(frozen=True, slots=True)
class Computing:
    """Device, precision and graphs of models; graphs of several models share `pool`, because they run in turn."""

    precision: Precision  # of the action expert, and of a joint model
    vlm_precision: Precision
    head: Precision
    graphs: bool
    device: torch.device
    pool: Any = None
    sampling: Sampling = GREEDY  # of the planner


def load(files: ModelFiles, header: Sequence[int], how: Computing) -> tuple[WaypointVLM, ActionExpert]:
    """Load the planner and the action expert; those of a joint checkpoint share a backbone.

    `header` holds the ids of "Action: ".
    """
    if files.joint:
        weights, table = _read(files.expert, how.precision, how.device)
        return joint_models(weights, table, files.expert_config, files.tokens, header, how)
    planner = vlm(*_read(files.vlm, how.vlm_precision, how.device), files.vlm_config, files.tokens, header, how)
    weights, table = _read(files.expert, how.precision, how.device)
    return planner, action_expert(weights, table, files.expert_config, how)


def vlm(
    weights: dict[str, Tensor],
    table: Tensor | Table,
    config: VlmConfig,
    tokens: TokenLayout,
    header: Sequence[int],
    how: Computing,
) -> WaypointVLM:
    """Return a planner with a backbone of its own; used tensors are removed from `weights`."""
    always = (*header, tokens.waypoint)
    backbone = Backbone(weights, table, VLM_STEM, config.vision, config.text, always, graphs=how.graphs, pool=how.pool)
    return WaypointVLM(backbone, tokens, header, how.graphs, how.pool, how.head, how.sampling)


def action_expert(
    weights: dict[str, Tensor], table: Tensor | Table, config: ActionExpertConfig, how: Computing
) -> ActionExpert:
    """Return an action expert with a backbone of its own; used tensors are removed from `weights`."""
    backbone = Backbone(
        weights, table, EXPERT_STEM, config.vision, config.text, plans=False, graphs=how.graphs, pool=how.pool
    )
    return ActionExpert(backbone, weights, config, how.graphs, how.pool)


def joint_models(
    weights: dict[str, Tensor],
    table: Tensor | Table,
    config: ActionExpertConfig,
    tokens: TokenLayout,
    header: Sequence[int],
    how: Computing,
) -> tuple[WaypointVLM, ActionExpert]:
    """Return a planner and an action expert with a common backbone; used tensors are removed from `weights`."""
    always = (*header, tokens.waypoint)
    backbone = Backbone(
        weights, table, EXPERT_STEM, config.vision, config.text, always, joint=True, graphs=how.graphs, pool=how.pool
    )
    if config.planner is None:
        planner = WaypointVLM(backbone, tokens, header, how.graphs, how.pool, how.head, how.sampling)
    else:
        planner = BlockPlanner(backbone, weights, tokens, header, how.graphs, how.pool, how.head, how.sampling)
    return planner, ActionExpert(backbone, weights, config, how.graphs, how.pool, joint=True)


def _read(file: Checkpoint, precision: Precision, device: torch.device) -> tuple[dict[str, Tensor], Table]:
    return dict(file.tensors(device, precision)), file.table(precision)
