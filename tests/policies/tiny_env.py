"""The environment in which the newer layouts' rollouts were recorded: a point mass in front of random pictures.

Pictures depend on the step count alone, so that rounding differences in the actions cannot change them.
"""

from __future__ import annotations

import numpy as np

from wpray.benchmarks.rotation import axis_angle
from wpray.benchmarks.views import policy_view
from wpray.types import FloatArray, ImageArray, Observation, ObservationSpec, SceneState, State, Step, Task, Trial

TASK = Task(
    "libero_spatial",
    1,
    "pick_up_the_ketchup_and_place_it_in_the_basket",
    "pick up the ketchup and place it in the basket",
    num_trials=2,
    max_steps=220,
)
# Of each trial: position (3), rotation vector (3), finger opening.
_INITIAL = np.array([[-0.051, 0.02, 0.25, 3.06, 0.10, -0.053, 0.035], [0.043, -0.08, 0.30, 3.20, -0.20, 0.123, 0.005]])
_DONE_AFTER = (75, 10_000)  # steps of each trial, the settling ones included


class TinyEnv:
    """Implements Environment."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        tile = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
        fine = rng.integers(0, 64, (2, 128, 128, 3)).astype(np.uint8)
        blocks = np.kron(tile, np.ones((1, 16, 16, 1), np.uint8))
        self._base, self._wrist = blocks ^ np.kron(fine, np.ones((1, 2, 2, 1), np.uint8))
        self.render_s = 0.0
        self.seen: list[Observation] = []

    def load(self, task: Task) -> None: ...

    def reset(self, trial: Trial) -> None:
        initial = _INITIAL[trial.init_state]
        self._position, self._rotation, self._finger = initial[:3].copy(), initial[3:6].copy(), float(initial[6])
        self._calls, self._done_after = 0, _DONE_AFTER[trial.init_state]

    def step(self, action: FloatArray) -> Step:
        self._calls += 1
        self._position = self._position + 0.02 * action[:3]
        self._rotation = self._rotation + 0.04 * action[3:6]
        self._finger = float(np.clip(self._finger - 0.01 * np.sign(action[6]), 0.0, 0.04))  # -1 opens, +1 closes
        return Step(self._calls >= self._done_after)

    def observe(self, spec: ObservationSpec) -> Observation:
        angle = float(np.linalg.norm(self._rotation))
        xyz, w = self._rotation / angle * np.sin(angle / 2), float(np.cos(angle / 2))
        proprio = np.concatenate([self._position, axis_angle(w, xyz), [self._finger, -self._finger]])
        base = np.roll(self._base, (5 * self._calls, -3 * self._calls), axis=(0, 1))
        wrist = np.roll(self._wrist, (-2 * self._calls, 7 * self._calls), axis=(0, 1))
        pictures = {"base": base, "wrist": wrist}
        return Observation(proprio, {role: policy_view(pictures[role], view) for role, view in spec.cameras.items()})

    def state(self) -> State:
        raise NotImplementedError

    def scene(self) -> SceneState:
        raise NotImplementedError

    def render(self, state: State, scene: SceneState, *, camera: str, height: int, width: int) -> ImageArray:
        raise NotImplementedError

    def close(self) -> None: ...
