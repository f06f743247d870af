"""Units of the waypoints, which are normalized by the statistics of the training data."""

from __future__ import annotations

import numpy as np

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import WaypointUnits
from wpray.policies.waypoint_vla.suite_statistics import scalings_of, suite_statistics
from wpray.types import PROPRIO_DIM


def waypoint_units(config: Config) -> WaypointUnits | None:
    """Return the units (8,); None if the statistics cannot be read here, or differ by suite.

    They are (7,) if a waypoint's last number is the gripper, 1 open or 0 closed, which has no unit.
    """
    if config.dataset_statistics_path is None:
        return None
    try:
        scalings = scalings_of(suite_statistics(config), config.norm_type)
    except BadInputError:  # the policy actor reads its own copy and reports errors
        return None
    if not scalings.agree:
        return None
    found = scalings.default
    offset = found.proprio.denormalize(np.zeros(found.proprio_dim))
    scale = found.proprio.denormalize(np.ones(found.proprio_dim)) - offset
    gripper = found.proprio_dim != PROPRIO_DIM
    return WaypointUnits((*scale.tolist(), *[1.0] * gripper), (*offset.tolist(), *[0.0] * gripper))
