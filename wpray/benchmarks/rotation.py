"""The one conversion of rotations that results must agree on."""

from __future__ import annotations

import math

import numpy as np

from wpray.types import FloatArray


def axis_angle(w: float, xyz: FloatArray) -> FloatArray:
    """Return a quaternion's rotation vector (3,): w clipped to [-1, 1], the angle not wrapped, zeros if not turned."""
    w = min(max(w, -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray((xyz * 2.0 * math.acos(w)) / sine)
