"""A control step that is bit-identical to stock LIBERO's and skips what only its observables need.

Stock runs `forward` before the controller, again inside it, and then `step`, 25 times a control step. On MuJoCo 3.3.2
each `forward` changes the solver's warm start, so its solver passes must stay. The other stages would compute the same
numbers again: the first `forward` is `mj_step1` and what follows the velocity stage, the second is the solver alone.
What the passes themselves would compute again is answered from memory (solver.py).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

from wpray.benchmarks.libero.observable_clock import ObservableClock
from wpray.benchmarks.libero.osc import OscController
from wpray.types import FloatArray, Step

_READING = frozenset({"on", "in", "up", "open", "close"})  # predicates that change nothing when evaluated


class Sample:
    """Last sample of the observables, in arrays of our own that each sample overwrites."""

    def __init__(self, env: Any) -> None:
        data, robot = env.sim.data._data, env.robots[0]
        self._data, self._site_rgba = data, env.sim.model._model.site_rgba
        self._site = data.site_xpos[robot.eef_site_id]
        self._body = data.xquat[env.sim.model.body_name2id(robot.robot_model.eef_name)]
        self._fingers = np.array(robot._ref_gripper_joint_pos_indexes)
        self._joints = np.array(robot._ref_joint_pos_indexes)
        self.entry_qpos = np.array(data.qpos)  # at the substep's entry: the kinematics that the images show
        self.eef_pos = np.zeros(3)
        self.eef_quat_wxyz = np.zeros(4)
        self.gripper_qpos = np.zeros(2)
        self.joint_pos = np.zeros(len(self._joints))
        self.site_alpha = np.zeros(len(self._site_rgba), dtype=np.float32)

    def take(self) -> None:
        """Read everything but `entry_qpos`, after the substep."""
        self.eef_pos[:] = self._site
        self.eef_quat_wxyz[:] = self._body
        qpos = self._data.qpos
        self.gripper_qpos[:] = qpos[self._fingers]
        self.joint_pos[:] = qpos[self._joints]
        self.site_alpha[:] = self._site_rgba[:, 3]


class Stepper:
    """Control steps of one robosuite LIBERO environment; a new one is made after every reset."""

    def __init__(self, env: Any) -> None:
        """`env` has just been reset: its observables have had one forced update."""
        self._env = env
        self._data = env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._osc = OscController(env)
        period = next(iter(env._observables.values()))._sampling_timestep
        self._clock = ObservableClock(env.model_timestep, period)
        self._clock.tick(force=True)
        self.sample = Sample(env)
        goal = env.parsed_problem["goal_state"]
        self._goal_only_reads = all(predicate[0].lower() in _READING for predicate in goal)
        self._goal_names = {tuple(predicate): f"{predicate[0]}({', '.join(predicate[1:])})" for predicate in goal}

    def set_state(self, flattened: FloatArray) -> None:
        """Put the simulator into an initial state (1 + nq + nv,), as LIBERO's `set_init_state` does."""
        env = self._env
        env.sim.set_state_from_flattened(flattened)
        env.sim.forward()
        env._check_success()
        env._post_process()
        self._clock.tick(force=True)
        self.sample.entry_qpos[:] = self._data.qpos
        self.sample.take()

    def step(self, action: FloatArray) -> Step:
        """Execute one control step of `action` (7,); terminated is LIBERO's `done`: the goal holds."""
        osc = self._osc
        samples, *later = [self._clock.tick() for _ in range(self._substeps)]
        self._run(samples, osc.begin, action)
        for samples, substeps in groupby(later):
            self._run(samples, osc.run, len(list(substeps)))
        osc.end()
        return self._finish()

    def _run(self, samples: bool, substeps: Callable[[Any], None], given: Any) -> None:
        if samples:
            self.sample.entry_qpos[:] = self._data.qpos
        substeps(given)
        if samples:
            self.sample.take()

    def _finish(self) -> Step:
        """Do what stock does after the substeps. It evaluates the goal twice, which matters if that switches lamps."""
        env = self._env
        rewarded = bool(env._check_success())
        env._post_process()
        solved = rewarded if self._goal_only_reads else bool(env._check_success())
        return Step(terminated=solved, reward=float(rewarded), progress=self._progress())

    def _progress(self) -> dict[str, float]:
        """Return which predicates of the goal hold, as they were evaluated last: on(plate_1, stove_1) -> 1.0."""
        values = self._env.predicate_values
        return {name: float(bool(values[predicate])) for predicate, name in self._goal_names.items()}
