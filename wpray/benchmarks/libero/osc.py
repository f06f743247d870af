"""robosuite's operational space controller without its glue: the same arithmetic on the same memory layouts.

Bit-equality depends on details: numba compiles a function per memory order and BLAS multiplies transposed matrices in
another order, so every matrix here is laid out as the stock controller lays it out.
"""

from __future__ import annotations

import functools
from typing import Any

import mujoco
import numpy as np

from wpray.benchmarks.libero.opspace import same_bits
from wpray.benchmarks.libero.osc_math import Arm, act, compiled_dot, run, sense
from wpray.benchmarks.libero.solver import Constraints
from wpray.types import FloatArray, IntArray

_GRIPPER_SIGNS = np.array([-1.0, 1.0])


def _order(array: FloatArray) -> Any:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _as_slice(indexes: FloatArray) -> Any:
    """Return a slice where the indexes are consecutive, because a view is faster than a copy, and equal to it."""
    first, last = int(indexes[0]), int(indexes[-1])
    return slice(first, last + 1) if np.array_equal(indexes, np.arange(first, last + 1)) else indexes


def _inertia_index(model: mujoco.MjModel, dofs: IntArray) -> IntArray:
    """Return where MuJoCo's sparse inertia holds each entry of the block of `dofs`; -1 where two dofs do not touch."""
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
    """Joint torques and gripper commands for one arm, computed as robosuite 1.4 computes them, and the physics between.

    Created again after every reset: robosuite replaces its controller then, and the first substep still uses the state
    that the replaced controller read at the reset pose.
    """

    def __init__(self, env: Any) -> None:
        """`env` is a robosuite environment that has just been reset."""
        robot, sim = env.robots[0], env.sim
        self._stock = controller = robot.controller
        fixed = controller.impedance_mode == "fixed" and controller.uncoupling
        if controller.interpolator_pos is not None or controller.interpolator_ori is not None or not fixed:
            raise RuntimeError("only robosuite's default OSC_POSE controller is reproduced")
        self._model, self._data = sim.model._model, sim.data._data  # kept alive while their addresses are in use
        self._gripper, self._constraints = robot.gripper, Constraints(self._data)
        site = sim.model.site_name2id(controller.eef_name)
        parts = {**self._buffers(), **self._seen(site), **self._driven(robot, sim)}
        self._arm = Arm(model=self._model._address, data=self._data._address, site=site, **parts)

    def _seen(self, site: int) -> dict[str, Any]:
        data, controller = self._data, self._stock
        dofs = np.array(controller.qvel_index)
        joints = _as_slice(dofs)
        return {
            "dofs": dofs,
            "pos": data.site_xpos[site],
            "ori": data.site_xmat[site].reshape(3, 3),
            "joint_pos": data.qpos[_as_slice(np.array(controller.qpos_index))],
            "joint_vel": data.qvel[joints],
            "bias": data.qfrc_bias[joints],
            "qvel": data.qvel,
            "inertia": data.qM,
            "inertia_index": _inertia_index(self._model, dofs),
        }

    def _buffers(self) -> dict[str, Any]:
        controller, nv, dof = self._stock, self._model.nv, len(self._stock.qpos_index)
        return {
            "site_jac_pos": np.zeros((3, nv)),
            "site_jac_ori": np.zeros((3, nv)),
            "vel_pos": np.zeros(3),
            "vel_ori": np.zeros(3),
            "mass": np.empty((dof, dof), order=_order(controller.mass_matrix)),
            "jac": np.empty((6, dof), order=_order(controller.J_full)),
            "jac_pos": np.empty((3, dof), order=_order(controller.J_pos)),
            "jac_ori": np.empty((3, dof), order=_order(controller.J_ori)),
            "goal_pos": np.zeros(3),
            "goal_ori": np.zeros((3, 3)),
        }

    def _driven(self, robot: Any, sim: Any) -> dict[str, Any]:
        actuators = np.array([sim.model.actuator_name2id(name) for name in robot.gripper.actuators])
        low, high = self._model.actuator_ctrlrange[actuators].T
        return {
            "gains": np.array([self._stock.kp, self._stock.kd]),
            "initial_joint": self._stock.initial_joint,
            "limits": np.array(robot.torque_limits),
            "ctrl": self._data.ctrl[_as_slice(np.array(robot._ref_joint_actuator_indexes))],
            "gripper": np.zeros(len(actuators)),
            "gripper_change": np.zeros(len(actuators)),
            "gripper_scale": np.array([0.5 * (high + low), 0.5 * (high - low)]),
            "gripper_ctrl": self._data.ctrl[_as_slice(actuators)],
        }

    def begin(self, action: FloatArray) -> None:
        """Run the first substep of a control step with a new action (7,).

        Right after a reset stock does not read the arm's state: it computes the first torques from the reset pose.
        """
        stock, arm = self._stock, self._arm
        fresh = bool(stock.new_update)
        self._sense(again=fresh)
        if fresh:
            stock.ee_pos, stock.ee_ori_mat = np.array(arm.pos), np.array(arm.ori)
            stock.new_update = False
        stock.set_goal(action[: stock.control_dim])
        arm.goal_pos[:], arm.goal_ori[:] = stock.goal_pos, stock.goal_ori
        arm.gripper_change[:] = _GRIPPER_SIGNS * self._gripper.speed * np.sign(action[stock.control_dim :])
        act(arm if fresh else self._at_reset(), fresh, same_bits())

    def run(self, count: int) -> None:
        """Run `count` more substeps."""
        if _same_dot(self._model.nv):
            with self._constraints.solving() as jacobian:
                run(self._arm, count, same_bits(), jacobian)
            return
        for _ in range(count):
            self._sense(again=True)
            act(self._arm, True, same_bits())

    def end(self) -> None:
        """Close the control step."""
        self._stock.new_update = True

    def _sense(self, again: bool) -> None:
        arm = self._arm
        sense(arm, again)
        np.dot(arm.site_jac_pos, arm.qvel, arm.vel_pos)
        np.dot(arm.site_jac_ori, arm.qvel, arm.vel_ori)

    def _at_reset(self) -> Arm:
        stock, arm = self._stock, self._arm
        arm.jac_pos[:], arm.jac_ori[:], arm.jac[:] = stock.J_pos, stock.J_ori, stock.J_full
        arm.mass[:] = stock.mass_matrix
        arm.vel_pos[:], arm.vel_ori[:] = stock.ee_pos_vel, stock.ee_ori_vel
        return arm._replace(
            pos=stock.ee_pos, ori=stock.ee_ori_mat, joint_pos=stock.joint_pos, joint_vel=stock.joint_vel
        )


@functools.cache
def _same_dot(nv: int) -> bool:
    """Return True if compiled code multiplies (3, nv) with (nv,) as numpy does, to the bit: numba's BLAS is SciPy's.

    If not, the substeps run in Python and call numpy, as stock does.
    """
    random, out = np.random.default_rng(0), np.empty(3)
    for _ in range(100):
        matrix, vector = random.normal(size=(3, nv)), random.normal(size=nv)
        compiled_dot(matrix, vector, out)
        if not np.array_equal(out, np.dot(matrix, vector)):
            return False
    return True
