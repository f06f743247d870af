"""The arithmetic of one controller substep, compiled: robosuite's own functions and operations in robosuite's order."""

from __future__ import annotations

import numba
import numpy as np

from wpray.envs.libero_import import prepare
from wpray.types import FloatArray

prepare()  # robosuite's import logs and LIBERO's configuration must be settled before either is imported
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error  # noqa: E402


@numba.njit(cache=True)
def osc_torques(
    goal_pos: FloatArray,
    goal_ori: FloatArray,
    pos: FloatArray,
    ori: FloatArray,
    vel_pos: FloatArray,
    vel_ori: FloatArray,
    gains: FloatArray,
    mass: FloatArray,
    jac: FloatArray,
    jac_pos: FloatArray,
    jac_ori: FloatArray,
    bias: FloatArray,
    initial_joint: FloatArray,
    joint_pos: FloatArray,
    joint_vel: FloatArray,
) -> FloatArray:
    """(7,) joint torques before clipping, N m; `gains` (2, 6) is kp and kd, the matrices are laid out as stock's."""
    force = (goal_pos - pos) * gains[0, :3] + (-vel_pos) * gains[1, :3]
    torque = orientation_error(goal_ori, ori) * gains[0, 3:] + (-vel_ori) * gains[1, 3:]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jac, jac_pos, jac_ori)
    wrench = np.empty(6)
    wrench[:3] = np.dot(lambda_pos, force)
    wrench[3:] = np.dot(lambda_ori, torque)
    torques: FloatArray = np.dot(jac.T, wrench) + bias
    torques += nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)
    return torques
