"""Environments that `bench env` compares, one per process because two would disturb each other's GL contexts."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import mujoco
import numpy as np

from wpray.benchmarks.libero import tasks
from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.imports import load
from wpray.benchmarks.libero.observed import CAMERAS, PROPRIO
from wpray.benchmarks.views import policy_view
from wpray.trials import reset_seed
from wpray.types import FloatArray, Observation, ObservationSpec, Trial

SubjectKind = Literal["stock", "stock_blind", "ours"]
_SEEN = ObservationSpec(proprio=PROPRIO)  # both cameras as usual, and everything that LIBERO says of the robot
_FLOOR_EVERY = 10


@dataclass(slots=True)
class SubjectRecording:
    """Recording of one trial: everything that must be equal, and the CPU seconds it took."""

    qpos: list[FloatArray] = field(default_factory=list)
    qvel: list[FloatArray] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)  # at decision points
    reset_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    render_s: float = 0.0  # ours: the requested renders
    physics_s: float = 0.0  # ours: 25 physics steps per control step, nothing else

    @property
    def episode_s(self) -> float:
        """CPU seconds of the whole trial."""
        return self.reset_s + sum(self.step_s) + self.render_s


def open_subject(kind: SubjectKind, suite: str, task_id: int) -> None:
    """Create this process's environment; the initializer of an executor."""
    global _SUBJECT
    _SUBJECT = _Ours(suite, task_id) if kind == "ours" else _Stock(suite, task_id, renders=kind == "stock")


def run_trial(trial: Trial, actions: FloatArray, decisions: frozenset[int]) -> SubjectRecording:
    """Run one trial in this process's environment; `decisions` are the steps after which the policy observes."""
    assert _SUBJECT is not None
    return _SUBJECT.run(trial, actions, decisions)


class _Stock:
    """Stock LIBERO's environment, reset as a fresh process would reset it."""

    def __init__(self, suite: str, task_id: int, renders: bool) -> None:
        kind = load("libero.libero.envs.env_wrapper").OffScreenRenderEnv
        options = {} if renders else {"use_camera_obs": False}
        path = str(tasks.bddl_file(suite, task_id))
        with contextlib.redirect_stdout(io.StringIO()):
            self._env = kind(bddl_file_name=path, camera_heights=256, camera_widths=256, **options)
        self._renders = renders
        self._initialisers = len(self._env.env.object_property_initializers)
        self._states = tasks.initial_states(suite, task_id)

    def run(self, trial: Trial, actions: FloatArray, decisions: frozenset[int]) -> SubjectRecording:
        recording, env = SubjectRecording(), self._env
        recording.reset_s = _cpu(lambda: self._reset(trial))
        for index, action in enumerate(actions):
            began = time.process_time()
            seen, _, done, _ = env.step(action)
            recording.step_s.append(time.process_time() - began)
            _note(recording, env.sim.data, done)
            if self._renders and index in decisions:
                recording.seen.append(_as_observation(seen))
        return recording

    def _reset(self, trial: Trial) -> None:
        env = self._env
        # Remove what stock adds to its initialisers at every reset, because a fresh process has not added it.
        del env.env.object_property_initializers[self._initialisers :]
        env.seed(reset_seed(trial))
        env.reset()
        env.set_init_state(self._states[trial.init_state])


class _Ours:
    """wpray's environment."""

    def __init__(self, suite: str, task_id: int) -> None:
        self._env = LiberoEnvironment()
        self._env.load(tasks.list_tasks(suite)[task_id])
        self._env.reset(Trial(tasks.list_tasks(suite)[task_id], 0, 0))
        self._env.observe(_SEEN)  # creates the GL context, as stock does on construction

    def run(self, trial: Trial, actions: FloatArray, decisions: frozenset[int]) -> SubjectRecording:
        recording, env = SubjectRecording(), self._env
        recording.reset_s = _cpu(lambda: env.reset(trial))
        scene = env._loaded()
        for index, action in enumerate(actions):
            if index % _FLOOR_EVERY == 0:
                recording.physics_s += _FLOOR_EVERY * self._physics_s()
            began = time.process_time()
            done = env.step(action).terminated
            recording.step_s.append(time.process_time() - began)
            _note(recording, scene.data, done)
            if index in decisions:
                began = time.process_time()
                recording.seen.append(env.observe(_SEEN))
                recording.render_s += time.process_time() - began
        return recording

    def _physics_s(self) -> float:
        scene = self._env._loaded()
        data = copy.copy(scene.data)
        return _cpu(lambda: mujoco.mj_step(scene.model, data, nstep=25))


_SUBJECT: _Stock | _Ours | None = None


def _note(recording: SubjectRecording, data: Any, done: bool) -> None:
    recording.qpos.append(data.qpos.copy())
    recording.qvel.append(data.qvel.copy())
    recording.done.append(bool(done))


def _as_observation(stock: dict[str, Any]) -> Observation:
    turn = load("robosuite.utils.transform_utils").quat2axisangle(stock["robot0_eef_quat"].copy())
    names = {"eef_pos", "eef_quat", "gripper_qpos", "joint_pos"}
    fields = {name: stock[f"robot0_{name}"] for name in names} | {"eef_axis_angle": turn}
    proprio = np.concatenate([fields[name] for name in _SEEN.proprio])
    images = {role: policy_view(stock[f"{camera}_image"]) for role, camera in CAMERAS.items()}
    return Observation(proprio, images)


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
