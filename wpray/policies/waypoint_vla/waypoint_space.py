"""Units of a policy's waypoints, recorded in run.json so that readers can convert them to metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.waypoint_vla.statistics import read_for_suites
from wpray.types import PROPRIO_DIM

_PHYSICAL = ("scripted",)  # policies whose waypoints are observed proprio


def waypoint_space(config: Config) -> dict[str, list[float]] | None:
    """Return `scale` and `offset` (8,) with proprio = waypoint * scale + offset; None if they are unknown.

    They are (7,) if a waypoint's last number is the gripper, 1 open or 0 closed, which has no unit.
    """
    if config.policy in _PHYSICAL:
        return {"scale": [1.0] * PROPRIO_DIM, "offset": [0.0] * PROPRIO_DIM}
    if config.dataset_statistics_path is None:
        return None
    try:
        path, key = Path(config.dataset_statistics_path), config.dataset_statistics_key
        found = read_for_suites(path, config.suites, key, config.norm_type).scaling(config.norm_type)
    except BadInputError:  # the policy actor reads its own copy and reports errors
        return None
    offset = found.proprio.denormalize(np.zeros(found.proprio_dim))
    scale = found.proprio.denormalize(np.ones(found.proprio_dim)) - offset
    gripper = found.proprio_dim != PROPRIO_DIM
    return {"scale": [*scale.tolist(), *[1.0] * gripper], "offset": [*offset.tolist(), *[0.0] * gripper]}
