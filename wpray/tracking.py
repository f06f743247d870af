"""Distance between waypoints and what segments reach: its record, and the rule that makes a new plan.

Nothing here changes an outcome unless `replan_on_deviation` is set: a reached pose is read, never acted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from wpray.types import Float32Array, FloatArray, Tracking, WaypointSpace

DeviationMetric = Literal["l2", "linf"]
POSE_DIM = 6  # position and axis-angle
OPEN_FINGER = np.float32(0.02)  # m, of the first finger joint: a gripper is open beyond it
_FINGER = 6  # the first finger joint in a proprio


@dataclass(frozen=True, slots=True)
class PhysicalSpace:
    """Space of waypoints that are proprio as observed: m, rad and the two finger joints in m."""

    def state(self, proprio: FloatArray) -> Float32Array:
        """Return (8,) float32."""
        return np.asarray(proprio, np.float32)

    def pose(self, state: Float32Array) -> tuple[Float32Array, bool]:
        """Return position (m) and axis-angle (rad), (6,), and whether the gripper is open."""
        return state[:POSE_DIM], bool(state[_FINGER] > OPEN_FINGER)


@dataclass(frozen=True, slots=True)
class DeviationRule:
    """The distance between waypoint and reached state beyond which a new plan is made."""

    threshold: float
    metric: DeviationMetric = "l2"

    def calls_for_a_plan(self, tracking: Tracking) -> bool:
        """Return whether the distance is above the threshold."""
        return deviation(tracking, self.metric) > self.threshold


def track(space: WaypointSpace, waypoint: Float32Array, proprio: FloatArray) -> Tracking:
    """Return the waypoint that a segment aimed at (`waypoint`, possibly padded) and the robot's state (8,) after it."""
    reached = space.state(proprio)
    planned = np.asarray(waypoint[: len(reached)], np.float32)
    pose, opened = space.pose(planned)
    return Tracking(
        planned_state=planned,
        reached_state=reached,
        planned_pose=pose,
        reached_pose=np.asarray(proprio[:POSE_DIM], np.float32),
        planned_open=opened,
        reached_open=bool(np.float32(proprio[_FINGER]) > OPEN_FINGER),
    )


def deviation(tracking: Tracking, metric: DeviationMetric) -> float:
    """Return the distance in the waypoints' units over position and rotation; the gripper does not count."""
    error = tracking.error[:POSE_DIM]
    return float(np.linalg.norm(error) if metric == "l2" else np.abs(error).max())
