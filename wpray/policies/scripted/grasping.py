"""Grasps of objects from above: numpy geometry on privileged object outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wpray.types import FloatArray, ObjectState, PrivilegedState

_YAWS = np.deg2rad(np.arange(-90, 90, 3))
_OPENING = 0.074  # widest object that fits between the open fingers, m
_HAND_HALF_LENGTH, _HAND_HALF_WIDTH = 0.11, 0.04  # hand along and across the finger axis, m
_HAND_CLEARANCE = 0.045  # a neighbour that rises this far above the finger tips can touch the hand, m


@dataclass(frozen=True, slots=True)
class Grasp:
    """Grasp from above."""

    centre: FloatArray  # (2,) position of the hand, m
    height: float  # of the grip site, m
    turn: float  # rotation of the hand about the vertical from its current one, rad


def find_grasp(state: PrivilegedState, target: ObjectState) -> Grasp:
    """Return the grasp of `target` across its narrow side with the least turn that avoids taller neighbours."""
    height = grasp_height(target)
    current = float(np.arctan2(state.finger_axis[1], state.finger_axis[0]))
    widths = np.array([np.ptp(target.footprint @ _direction(yaw)) for yaw in _YAWS])
    turns = np.array([_wrap(yaw - current) for yaw in _YAWS])
    cost = widths + 0.008 * np.abs(turns) + 5.0 * (widths > _OPENING)
    for other in state.objects:
        if other.name not in (state.target, state.goal) and other.top > height + _HAND_CLEARANCE:
            cost += _collisions(centre_of(target), other)
    best = int(np.argmin(cost))
    return Grasp(centre_of(target), height, float(turns[best]))


def grasp_height(target: ObjectState) -> float:
    """Return the height near the top of a tall object or at the middle of a flat one, with fingers off the ground."""
    size = target.top - target.bottom
    wanted = target.top - 0.035 if size > 0.05 else target.bottom + 0.5 * size
    return max(target.bottom + 0.014, wanted)


def centre_of(thing: ObjectState) -> FloatArray:
    """Return the middle (2,) of the outline's extent."""
    return np.asarray((thing.footprint.max(axis=0) + thing.footprint.min(axis=0)) / 2)


def _collisions(centre: FloatArray, other: ObjectState) -> FloatArray:
    """Return 1 for each yaw at which the hand would touch `other`, else 0."""
    radius = np.ptp(other.footprint, axis=0).mean() / 2 + 0.005
    offset = centre_of(other) - centre
    along = np.array([abs(offset @ _direction(yaw)) for yaw in _YAWS])
    across = np.array([abs(offset @ _direction(yaw + np.pi / 2)) for yaw in _YAWS])
    touches = (along < _HAND_HALF_LENGTH + radius) & (across < _HAND_HALF_WIDTH + radius)
    return np.asarray(touches, dtype=np.float64)


def _direction(yaw: float) -> FloatArray:
    return np.array([np.cos(yaw), np.sin(yaw)])


def _wrap(angle: float) -> float:
    """Wrap an angle into [-pi/2, pi/2), because half a turn of the gripper changes nothing."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
