"""A point mass that must reach a point: the Environment protocol in microseconds, for tests and benchmarks.

Deterministic in (trial, actions) as real LIBERO is. An object and a basket stand in for LIBERO's, so that the scripted
policy has something to move: the object counts as grasped once the closed hand is at it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from wpray.benchmarks.base import DrawClient
from wpray.benchmarks.drawing import model_digest
from wpray.benchmarks.fake.drawing import CAMERA_SIZE, flat_image
from wpray.benchmarks.views import policy_view
from wpray.trials import reset_seed
from wpray.types import (
    DrawRequest,
    FloatArray,
    ImageArray,
    ImageSpec,
    ObjectState,
    Observation,
    ObservationSpec,
    PrivilegedState,
    SceneState,
    State,
    Step,
    Task,
    Trial,
)

_NUM_TASKS, _NUM_TRIALS, _MAX_STEPS = 10, 200, 120
_MODEL_REPEATS = 1000  # about 6 kB
_SPEED = 0.0133  # metres a step at full command, as the real arm
CAMERAS = {"base": "agentview", "wrist": "robot0_eye_in_hand"}  # role -> name
OBSERVATION = ObservationSpec(dict.fromkeys(CAMERAS, ImageSpec(*CAMERA_SIZE, rotated=False)), privileged=True)
_HALF = 0.02  # half an object's edge, m
_SQUARE = np.array([[-_HALF, -_HALF], [_HALF, -_HALF], [_HALF, _HALF], [-_HALF, _HALF]])


def fake_tasks(max_steps: int | None = None) -> tuple[Task, ...]:
    """Return ten tasks of 200 trials each."""
    return tuple(
        Task("fake", index, f"move_the_cube_{index}", f"move the cube {index}", _NUM_TRIALS, max_steps or _MAX_STEPS)
        for index in range(_NUM_TASKS)
    )


class FakeEnvironment:
    """Environment of the fake benchmark. Success: the object within 5 cm of the goal."""

    def __init__(self) -> None:
        self.render_s = 0.0
        self._task: Task | None = None
        self._client: DrawClient | None = None

    def draw_with(self, client: DrawClient) -> None:
        """Let `client` draw what `observe` shows."""
        self._client = client

    def load(self, task: Task) -> None:
        """Take the task; there is nothing to compile but some bytes that stand for a model."""
        self._task, self._model = task, f"{task.suite} {task.task_id}".encode() * _MODEL_REPEATS

    def reset(self, trial: Trial) -> None:
        """Put the hand above the table, object and goal where the trial's seed puts them."""
        rng = np.random.default_rng(reset_seed(trial))
        self._hand = np.array([0.0, 0.0, 0.3])
        self._cube = np.append(rng.uniform(-0.2, 0.2, 2), _HALF)
        self._goal = np.append(rng.uniform(-0.2, 0.2, 2), 0.0)
        if trial.own_state is not None:  # x and y of both
            self._cube[:2], self._goal[:2] = np.array(trial.own_state).reshape(2, 2)
        self._closed = False
        self._velocity = np.zeros(3)
        self.render_s = 0.0

    def step(self, action: FloatArray) -> Step:
        """Move the hand; a closed hand at the object carries it."""
        self._velocity = 0.5 * self._velocity + 0.5 * _SPEED * 1.05 * np.clip(action[:3], -1, 1)
        held = self._closed and float(np.linalg.norm(self._hand - self._cube)) < 0.03
        self._hand = self._hand + self._velocity
        self._closed = bool(action[6] > 0)
        if held and self._closed:
            self._cube = self._cube + self._velocity
        solved = bool(np.linalg.norm((self._cube - self._goal)[:2]) < 0.05)
        carried = self._closed and held
        return Step(solved, reward=float(solved), progress={"carried": float(carried), "at_goal": float(solved)})

    def observe(self, spec: ObservationSpec) -> Observation:
        """Return proprio, flat-coloured views whose colour is the hand's position, and the two objects."""
        began = time.perf_counter()
        views = self._views(spec)
        if views:
            self.render_s += time.perf_counter() - began
        return Observation(self._proprio(spec.proprio), views, self._truth() if spec.privileged else None)

    def state(self) -> State:
        """Return the positions of hand and object as qpos."""
        qpos = np.concatenate([self._hand, self._cube])
        return {
            "eef_pos": self._hand.copy(),
            "eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "gripper_qpos": self._fingers(),
            "qpos": qpos,
            "qvel": np.concatenate([self._velocity, np.zeros(3)]),
            "render_qpos": qpos.copy(),
            "render_site_alpha": np.zeros(1, dtype=np.float32),
        }

    def scene(self) -> SceneState:
        """Return the goal as the only fixture."""
        return SceneState(self._goal.reshape(1, 3).copy(), np.array([[1.0, 0.0, 0.0, 0.0]]))

    def render(self, state: State, scene: SceneState | None, *, camera: str, height: int, width: int) -> ImageArray:
        """Return a flat image whose colour is the hand's position."""
        return flat_image(state["render_qpos"][:3], height, width)

    def close(self) -> None:
        """Forget the task; there is nothing to free."""
        self._task = None

    def _views(self, spec: ObservationSpec) -> dict[str, ImageArray]:
        """Return pictures whose colour is the hand's position, by role."""
        if self._client is None or not spec.cameras:
            image = flat_image(self._hand, *CAMERA_SIZE)
            return {role: policy_view(image, view) for role, view in spec.cameras.items()}
        views = {role: (CAMERAS[role], view) for role, view in spec.cameras.items()}
        request = DrawRequest(model_digest(self._model), {"hand": self._hand.copy()}, views)
        return self._client.draw(request, lambda: self._model)

    def _fingers(self) -> FloatArray:
        return np.array([0.01, -0.01] if self._closed else [0.04, -0.04])

    def _proprio(self, fields: Sequence[str]) -> FloatArray:
        values = {"eef_pos": self._hand, "eef_axis_angle": np.zeros(3), "gripper_qpos": self._fingers()}
        return np.concatenate([values[name] for name in fields])

    def _truth(self) -> PrivilegedState:
        return PrivilegedState(
            eef_pos=self._hand.copy(),
            eef_rotation=np.eye(3),
            finger_axis=np.array([0.0, 1.0, 0.0]),
            objects=(_cube("cube", self._cube), _cube("basket", self._goal)),
            target="cube",
            goal="basket",
        )


def _cube(name: str, position: FloatArray) -> ObjectState:
    return ObjectState(name, position.copy(), _SQUARE + position[:2], position[2] - _HALF, position[2] + _HALF)
