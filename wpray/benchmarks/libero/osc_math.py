"""The substeps, compiled: MuJoCo's calls, and between them robosuite's operations in robosuite's order.

It runs without the interpreter's lock, as MuJoCo's bindings do, so that an actor answers meanwhile. numba's cache
notices a change of this file, but not of opspace.py and solver.py, whose functions are compiled into these: touch this
file then.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numba
import numpy as np

from wpray.benchmarks.libero.imports import load
from wpray.benchmarks.libero.native import mj_forward_skip, mj_fwd_constraint, mj_jac_site, mj_step1, mj_step2
from wpray.benchmarks.libero.opspace import opspace_matrices
from wpray.benchmarks.libero.solver import begin, end
from wpray.types import FloatArray, IntArray

_control = load("robosuite.utils.control_utils")
nullspace_torques, orientation_error = _control.nullspace_torques, _control.orientation_error
_AFTER_VELOCITY = int(mujoco.mjtStage.mjSTAGE_VEL)


class Arm(NamedTuple):
    """Data of the compiled code: views of MuJoCo's arrays, constants and buffers."""

    model: int  # addresses
    data: int
    site: int  # of the end effector
    dofs: IntArray  # (7,) of the arm among all nv
    # State that the controller reads: views
    pos: FloatArray  # (3,) of the site
    ori: FloatArray  # (3, 3)
    joint_pos: FloatArray  # (7,)
    joint_vel: FloatArray
    bias: FloatArray
    qvel: FloatArray  # (nv,)
    inertia: FloatArray  # MuJoCo's sparse one
    inertia_index: IntArray  # (7, 7): where the arm's block is in it, -1 where it has no entry
    # Values computed from that state
    site_jac_pos: FloatArray  # (3, nv)
    site_jac_ori: FloatArray
    vel_pos: FloatArray  # (3,) of the site
    vel_ori: FloatArray
    mass: FloatArray  # (7, 7); it and the next are laid out as stock's
    jac: FloatArray  # (6, 7)
    jac_pos: FloatArray  # (3, 7)
    jac_ori: FloatArray
    # Commands
    goal_pos: FloatArray  # (3,)
    goal_ori: FloatArray  # (3, 3)
    gains: FloatArray  # (2, 6): kp and kd
    initial_joint: FloatArray  # (7,)
    limits: FloatArray  # (2, 7): lowest and highest torque, N m
    ctrl: FloatArray  # (7,), a view
    gripper: FloatArray  # (2,) the gripper's command in [-1, 1]
    gripper_change: FloatArray  # change of the command in a substep
    gripper_scale: FloatArray  # (2, 2) middle and half width of its actuators' range
    gripper_ctrl: FloatArray  # (2,), a view


@numba.njit(cache=True, nogil=True)
def run(arm: Arm, count: int, split: bool, jacobian: int) -> None:
    """Run `count` substeps, not a control step's first one; `split`: see opspace.py, `jacobian`: see solver.py."""
    for _ in range(count):
        mj_step1(arm.model, arm.data)
        if jacobian:
            begin(jacobian)
        _sense(arm, True)
        compiled_dot(arm.site_jac_pos, arm.qvel, arm.vel_pos)
        compiled_dot(arm.site_jac_ori, arm.qvel, arm.vel_ori)
        act(arm, True, split)
        if jacobian:
            end()


@numba.njit(cache=True, nogil=True)
def sense(arm: Arm, again: bool) -> None:
    """Compute a substep up to the site's velocity: stock's first `forward`, and if `again` the solver of its second."""
    mj_step1(arm.model, arm.data)
    _sense(arm, again)


@numba.njit(cache=True)
def _sense(arm: Arm, again: bool) -> None:
    """Compute what follows a substep's constraints."""
    mj_forward_skip(arm.model, arm.data, _AFTER_VELOCITY, 1)
    if again:
        mj_fwd_constraint(arm.model, arm.data)
    mj_jac_site(arm.model, arm.data, arm.site_jac_pos.ctypes, arm.site_jac_ori.ctypes, arm.site)


@numba.njit(cache=True)
def compiled_dot(matrix: FloatArray, vector: FloatArray, out: FloatArray) -> None:
    """Return `np.dot` by SciPy's BLAS, where numpy has another one."""
    np.dot(matrix, vector, out)


@numba.njit(cache=True, nogil=True)
def act(arm: Arm, fresh: bool, split: bool) -> None:
    """Compute the rest of a substep: the arm's clipped torques and the gripper's command, then MuJoCo's step.

    If not `fresh`, `mass` and the Jacobians beside it are already what the controller is to use.
    """
    if fresh:
        _gather(arm)
    lambda_pos, lambda_ori, nullspace = opspace_matrices(arm.mass, arm.jac, arm.jac_pos, arm.jac_ori, split)
    turn = orientation_error(arm.goal_ori, arm.ori)
    force, torque, wrench = np.empty(3), np.empty(3), np.empty(6)
    for i in range(3):
        force[i] = (arm.goal_pos[i] - arm.pos[i]) * arm.gains[0, i] - arm.vel_pos[i] * arm.gains[1, i]
        torque[i] = turn[i] * arm.gains[0, 3 + i] - arm.vel_ori[i] * arm.gains[1, 3 + i]
    np.dot(lambda_pos, force, wrench[:3])
    np.dot(lambda_ori, torque, wrench[3:])
    torques = np.dot(arm.jac.T, wrench)
    posture = nullspace_torques(arm.mass, nullspace, arm.initial_joint, arm.joint_pos, arm.joint_vel)
    for i in range(arm.ctrl.size):
        arm.ctrl[i] = np.minimum(np.maximum(torques[i] + arm.bias[i] + posture[i], arm.limits[0, i]), arm.limits[1, i])
    for i in range(arm.gripper.size):
        arm.gripper[i] = np.minimum(np.maximum(arm.gripper[i] + arm.gripper_change[i], -1.0), 1.0)
        arm.gripper_ctrl[i] = arm.gripper_scale[0, i] + arm.gripper_scale[1, i] * arm.gripper[i]
    mj_step2(arm.model, arm.data)


@numba.njit(cache=True)
def _gather(arm: Arm) -> None:
    """Copy the arm's columns of the site's Jacobians, and its block of the sparse inertia."""
    for column in range(arm.dofs.size):
        dof = arm.dofs[column]
        for row in range(3):
            arm.jac[row, column] = arm.jac_pos[row, column] = arm.site_jac_pos[row, dof]
            arm.jac[row + 3, column] = arm.jac_ori[row, column] = arm.site_jac_ori[row, dof]
        for row in range(arm.dofs.size):
            index = arm.inertia_index[row, column]
            arm.mass[row, column] = arm.inertia[index] if index >= 0 else 0.0
