"""robosuite's operational space controller without its glue: the same arithmetic on the same memory layouts.

Bit-equality hangs on details: numba compiles a function per memory order and BLAS multiplies transposed matrices in
another order, so every matrix here is laid out as the stock controller lays it out.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from wpray.envs.osc_math import gather, gripper_substep, osc_substep
from wpray.types import FloatArray, IntArray

_GRIPPER_SIGNS = np.array([-1.0, 1.0])


def _order(array: FloatArray) -> Any:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _as_slice(indexes: FloatArray) -> Any:
    """A slice where the indexes are consecutive: a view is faster than a copy, and equal to it."""
    first, last = int(indexes[0]), int(indexes[-1])
    return slice(first, last + 1) if np.array_equal(indexes, np.arange(first, last + 1)) else indexes


def _inertia_index(model: mujoco.MjModel, dofs: IntArray) -> IntArray:
    """Where MuJoCo's sparse inertia holds each entry of the block of `dofs`; -1 where two dofs do not touch."""
    index = np.full((len(dofs), len(dofs)), -1)
    place = {int(dof): number for number, dof in enumerate(dofs)}
    for dof, row in place.items():
        other, address = dof, int(model.dof_Madr[dof])
        while other >= 0:
            if other in place:
                index[row, place[other]] = index[place[other], row] = address
            other, address = int(model.dof_parentid[other]), address + 1
    return index


class OscController:
    """Joint torques and gripper commands for one arm, computed as robosuite 1.4 computes them.

    Made anew after every reset: robosuite replaces its controller then, and the first substep still uses the state
    that the replaced controller read at the reset pose.
    """

    def __init__(self, env: Any) -> None:
        """`env` is a robosuite environment that has just been reset."""
        robot, sim = env.robots[0], env.sim
        self._stock = controller = robot.controller
        fixed = controller.impedance_mode == "fixed" and controller.uncoupling
        if controller.interpolator_pos is not None or controller.interpolator_ori is not None or not fixed:
            raise RuntimeError("only robosuite's default OSC_POSE controller is reproduced")
        self._model, self._data = sim.model._model, sim.data._data
        self._site = sim.model.site_name2id(controller.eef_name)
        self._bind_arm(robot, controller)
        self._bind_gripper(robot.gripper, sim)

    def _bind_arm(self, robot: Any, controller: Any) -> None:
        data, nv = self._data, self._model.nv
        self._qpos = data.qpos[_as_slice(np.array(controller.qpos_index))]
        dofs = np.array(controller.qvel_index)
        self._joints = _as_slice(dofs)
        self._qvel_all, self._qvel = data.qvel, data.qvel[self._joints]
        self._bias = data.qfrc_bias[self._joints]
        self._arm_ctrl = data.ctrl[_as_slice(np.array(robot._ref_joint_actuator_indexes))]
        self._eef_pos = data.site_xpos[self._site]
        self._eef_ori = data.site_xmat[self._site].reshape(3, 3)
        self._jac_pos, self._jac_ori = np.zeros((3, nv)), np.zeros((3, nv))
        self._dofs, self._mass_index = dofs, _inertia_index(self._model, dofs)
        self._inertia = data.qM
        dof = len(controller.qpos_index)
        self._j_pos = np.empty((3, dof), order=_order(controller.J_pos))
        self._j_ori = np.empty((3, dof), order=_order(controller.J_ori))
        self._j = np.empty((6, dof), order=_order(controller.J_full))
        self._mass = np.empty((dof, dof), order=_order(controller.mass_matrix))
        self._gains = np.array([controller.kp, controller.kd])
        self._initial_joint = controller.initial_joint
        self._limits = np.array(robot.torque_limits)

    def _bind_gripper(self, gripper: Any, sim: Any) -> None:
        actuators = np.array([sim.model.actuator_name2id(name) for name in gripper.actuators])
        limits = self._model.actuator_ctrlrange[actuators]
        self._gripper = gripper
        self._gripper_ctrl = self._data.ctrl[_as_slice(actuators)]
        self._gripper_scale = np.array([0.5 * (limits[:, 1] + limits[:, 0]), 0.5 * (limits[:, 1] - limits[:, 0])])
        self._gripper_state = np.zeros(len(actuators))

    def begin(self, action: FloatArray) -> bool:
        """Takes a new action (7,) at a control step's first substep; returns whether the state was read anew.

        Right after a reset it was not: stock then computes the first torques from the reset pose.
        """
        stock = self._stock
        fresh = bool(stock.new_update)
        if fresh:
            self._read_state()
            stock.ee_pos, stock.ee_ori_mat = np.array(self._eef_pos), np.array(self._eef_ori)
            stock.ee_pos_vel, stock.ee_ori_vel = self._vel_pos, self._vel_ori
            stock.new_update = False
        else:
            self._take_stock_state()
        stock.set_goal(action[: stock.control_dim])
        self._goal_pos, self._goal_ori = stock.goal_pos, stock.goal_ori
        gripper = self._gripper
        self._gripper_step = _GRIPPER_SIGNS * gripper.speed * np.sign(action[stock.control_dim :])
        return fresh

    def update(self) -> None:
        """Reads the arm's state, as the substeps after the first do."""
        self._read_state()

    def apply(self) -> None:
        """Writes the torques and the gripper command of one substep into the simulator's ctrl."""
        osc_substep(
            self._goal_pos,
            self._goal_ori,
            self._pos,
            self._ori,
            self._vel_pos,
            self._vel_ori,
            self._gains,
            self._mass,
            self._j,
            self._j_pos,
            self._j_ori,
            self._bias,
            self._initial_joint,
            self._q,
            self._v,
            self._limits,
            self._arm_ctrl,
        )
        gripper_substep(self._gripper_state, self._gripper_step, self._gripper_scale, self._gripper_ctrl)

    def end(self) -> None:
        """Closes the control step."""
        self._stock.new_update = True

    def _read_state(self) -> None:
        mujoco.mj_jacSite(self._model, self._data, self._jac_pos, self._jac_ori, self._site)
        gather(
            self._jac_pos,
            self._jac_ori,
            self._inertia,
            self._mass_index,
            self._dofs,
            self._j,
            self._j_pos,
            self._j_ori,
            self._mass,
        )
        self._pos, self._ori = self._eef_pos, self._eef_ori
        self._vel_pos = np.dot(self._jac_pos, self._qvel_all)
        self._vel_ori = np.dot(self._jac_ori, self._qvel_all)
        self._q, self._v = self._qpos, self._qvel

    def _take_stock_state(self) -> None:
        stock = self._stock
        self._pos, self._ori = stock.ee_pos, stock.ee_ori_mat
        self._vel_pos, self._vel_ori = stock.ee_pos_vel, stock.ee_ori_vel
        self._j_pos[:], self._j_ori[:] = stock.J_pos, stock.J_ori
        self._j[:], self._mass[:] = stock.J_full, stock.mass_matrix
        self._q, self._v = stock.joint_pos, stock.joint_vel
