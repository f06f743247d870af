"""Model of the arm's response to commands, sufficient to plan a segment's actions without observations in between.

robosuite's controller sets its goal at every control step, at a commanded offset from the hand, and pulls the hand
there like a critically damped spring. So a command is neither a velocity nor a distance: the hand covers about a
quarter of it per step, and keeps moving.
"""

from __future__ import annotations

import math

import numpy as np

from wpray.types import FloatArray

POSITION_SCALE = 0.05  # m that a command of 1 means
ROTATION_SCALE = 0.5  # rad that a command of 1 means
_OMEGA = math.sqrt(150.0)  # the controller's stiffness, rad/s
_STEP_S = 0.05


def commands_towards(offset: FloatArray, steps: int, scale: float, limit: float = 1.0) -> FloatArray:
    """Return commands (steps, 3) that move the hand by `offset` (3,) from rest, within `limit`, and hold it."""
    commands = np.empty((steps, 3))
    position, velocity = np.zeros(3), np.zeros(3)
    for step in range(steps):
        commands[step] = np.clip((offset - position) / scale, -limit, limit)
        position, velocity = _advance(position, velocity, commands[step] * scale)
    return commands


def steps_towards(offset: FloatArray, scale: float, tolerance: float, limit: float = 1.0, most: int = 32) -> int:
    """Return the control steps until the hand is within `tolerance` of `offset` (3,), at most `most`."""
    position, velocity = np.zeros(3), np.zeros(3)
    for step in range(most):
        if np.abs(offset - position).max() < tolerance:
            return step
        command = np.clip((offset - position) / scale, -limit, limit)
        position, velocity = _advance(position, velocity, command * scale)
    return most


def _advance(position: FloatArray, velocity: FloatArray, pull: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Advance a critically damped spring, whose rest point is `pull` away from the position, by one control step."""
    error = -pull
    slope = velocity + _OMEGA * error
    decay = math.exp(-_OMEGA * _STEP_S)
    end = (error + slope * _STEP_S) * decay
    end_velocity = (velocity - _OMEGA * slope * _STEP_S) * decay
    return position + pull + end, end_velocity
