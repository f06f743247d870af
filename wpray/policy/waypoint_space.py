"""The units of a policy's waypoints, for run.json: what turns them into metres long after the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policy.statistics import read_statistics
from wpray.types import PROPRIO_DIM

_PHYSICAL = ("scripted",)  # policies whose waypoints are proprio as observed


def waypoint_space(config: Config) -> dict[str, list[float]] | None:
    """`scale` and `offset` (8,) such that proprio = waypoint * scale + offset; None if nothing tells."""
    if config.policy in _PHYSICAL:
        return {"scale": [1.0] * PROPRIO_DIM, "offset": [0.0] * PROPRIO_DIM}
    if config.dataset_statistics_path is None:
        return None
    try:
        path, key = Path(config.dataset_statistics_path), config.dataset_statistics_key
        scaling = read_statistics(path, config.task_suite, key).scaling(config.norm_type).proprio
    except BadInputError:  # the policy actor reads its own copy, and complains if it must
        return None
    offset = scaling.denormalize(np.zeros(PROPRIO_DIM))
    scale = scaling.denormalize(np.ones(PROPRIO_DIM)) - offset
    return {"scale": scale.tolist(), "offset": offset.tolist()}
