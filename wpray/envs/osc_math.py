"""The arithmetic of one controller substep, compiled: robosuite's own functions and operations in robosuite's order."""

from __future__ import annotations

import numba
import numpy as np

from wpray.envs.libero_import import load
from wpray.types import FloatArray, IntArray

_control = load("robosuite.utils.control_utils")
nullspace_torques, opspace_matrices = _control.nullspace_torques, _control.opspace_matrices
orientation_error = _control.orientation_error


@numba.njit(cache=True)
def gather(
    jac_site_pos: FloatArray,
    jac_site_ori: FloatArray,
    mass_sparse: FloatArray,
    mass_index: IntArray,
    dofs: IntArray,
    jac: FloatArray,
    jac_pos: FloatArray,
    jac_ori: FloatArray,
    mass: FloatArray,
) -> None:
    """Copies the arm's columns of the site's Jacobians (3, nv), and its block of MuJoCo's sparse inertia, into `jac`
    (6, 7), `jac_pos` and `jac_ori` (3, 7), `mass` (7, 7); the memory orders of these are the caller's.
    """
    for column in range(dofs.size):
        dof = dofs[column]
        for row in range(3):
            jac[row, column] = jac_pos[row, column] = jac_site_pos[row, dof]
            jac[row + 3, column] = jac_ori[row, column] = jac_site_ori[row, dof]
        for row in range(dofs.size):
            index = mass_index[row, column]
            mass[row, column] = mass_sparse[index] if index >= 0 else 0.0


@numba.njit(cache=True)
def osc_substep(
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
    limits: FloatArray,
    ctrl: FloatArray,
) -> None:
    """Writes (7,) clipped joint torques, N m, into `ctrl`.

    `gains` (2, 6) is kp and kd, `limits` (2, 7) lowest and highest torque; the matrices are laid out as stock's.
    """
    force = (goal_pos - pos) * gains[0, :3] + (-vel_pos) * gains[1, :3]
    torque = orientation_error(goal_ori, ori) * gains[0, 3:] + (-vel_ori) * gains[1, 3:]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jac, jac_pos, jac_ori)
    wrench = np.empty(6)
    wrench[:3] = np.dot(lambda_pos, force)
    wrench[3:] = np.dot(lambda_ori, torque)
    torques = np.dot(jac.T, wrench) + bias
    torques += nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)
    ctrl[:] = np.minimum(np.maximum(torques, limits[0]), limits[1])


@numba.njit(cache=True)
def gripper_substep(state: FloatArray, change: FloatArray, scale: FloatArray, ctrl: FloatArray) -> None:
    """Moves the gripper's command `state` (2,) by `change` within [-1, 1] and writes it, scaled, into `ctrl`.

    `scale` (2, 2) is the middle and the half width of the actuators' range.
    """
    state[:] = np.minimum(np.maximum(state + change, -1.0), 1.0)
    ctrl[:] = scale[0] + scale[1] * state
