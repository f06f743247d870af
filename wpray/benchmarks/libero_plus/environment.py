"""LIBERO-plus's variants in LIBERO's environment: a scene is compiled once for all variants that share it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.observed import CAMERAS
from wpray.benchmarks.libero.recipe import Roots
from wpray.benchmarks.libero.scene import Scene
from wpray.benchmarks.libero_plus import package
from wpray.benchmarks.libero_plus.camera import CAMERA, place_camera
from wpray.benchmarks.libero_plus.noise import noisy
from wpray.benchmarks.libero_plus.own_scenes import asset_roots, prepare_scene
from wpray.benchmarks.libero_plus.suites import split
from wpray.benchmarks.libero_plus.variants import Variant
from wpray.trials import trial_generator
from wpray.types import FloatArray, ImageArray, Step, Task, Trial


class LiberoPlusEnvironment(LiberoEnvironment):
    """One variant at a time, as the package's own environment makes it when its trial begins with `set_init_state`.

    That puts the arm's joints where the file of initial states has them. A variant's start shows nevertheless: the
    controller aims at the pose that it found at the reset, and is drawn towards the joints of then.

    Noise is drawn when the picture is looked at, from the trial's key and the step, so what is not looked at changes
    nothing. As in the package, the initial state is seen without noise, and the wrist's camera always is.
    """

    _file: Path | None = None  # BDDL file of the compiled scene
    _variant: Variant

    def load(self, task: Task) -> None:
        """Make `task` the current one; compile its scene (some seconds) unless the last task had the same."""
        if self._task == task:
            return
        base, _ = split(task.suite)
        variant = Variant.of(task.name)
        file = package.bddl_file(str(base), variant.compiled)
        if file != self._file:
            self.close()
            prepare_scene(file, variant.category)
            self._scene, self._file = Scene(file), file
        self._states = package.initial_states(str(base), variant)
        self._task = None  # until the scene is perturbed, so that a retry after an error does not take it for `task`
        self._perturb(variant)
        self._task, self._variant = task, variant

    def reset(self, trial: Trial) -> None:
        """Reset the scene for `trial` and put it into its initial state."""
        super().reset(trial)
        self._trial, self._steps = trial, 0

    def step(self, action: FloatArray) -> Step:
        """Execute one control step; terminated is LIBERO's `done`."""
        self._steps += 1
        return super().step(action)

    def close(self) -> None:
        """Free the simulator and give its memory back to the system."""
        super().close()
        self._file = None

    def _perturb(self, variant: Variant) -> None:
        """Move the camera and the robot's start, which no reset restores, to where the variant has them."""
        env, start = self._loaded().env, variant.start
        place_camera(env, variant.view)
        robot = env.robots[0]
        robot.init_qpos = package.start_of(robot.name, start) if start else robot.robot_model.init_qpos

    def _asset_roots(self) -> Roots:
        return asset_roots()

    def _is_altered(self, role: str) -> bool:
        return CAMERAS[role] == CAMERA and bool(self._variant.noise and self._steps)

    def _altered(self, picture: ImageArray) -> ImageArray:
        """Return the picture with the noise of the step."""
        seed = trial_generator(self._trial, "sensor noise", self._steps).integers(2**32)
        return noisy(picture, self._variant.noise, np.random.RandomState(seed))
