"""Real LIBERO behind the Environment protocol: bit-identical to the stock environment, many times faster."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wpray.benchmarks.base import DrawClient
from wpray.benchmarks.drawing import model_digest
from wpray.benchmarks.libero import tasks
from wpray.benchmarks.libero.compiling import first_one_alone
from wpray.benchmarks.libero.imports import asset_roots
from wpray.benchmarks.libero.observed import CAMERA_SIZE, CAMERAS, QPOS, SITE_ALPHA
from wpray.benchmarks.libero.privileged import read_privileged
from wpray.benchmarks.libero.recipe import Roots
from wpray.benchmarks.libero.rendering import SceneRenderer, upright
from wpray.benchmarks.libero.scene import Scene
from wpray.benchmarks.libero.stepper import Sample, Stepper
from wpray.benchmarks.rotation import axis_angle
from wpray.benchmarks.views import policy_view
from wpray.errors import BadInputError
from wpray.trials import reset_seed
from wpray.types import (
    DrawRequest,
    FloatArray,
    ImageArray,
    ImageSpec,
    Observation,
    ObservationSpec,
    SceneState,
    State,
    Step,
    Task,
    Trial,
)

NATIVE = ImageSpec(CAMERA_SIZE, CAMERA_SIZE, rotated=False)  # picture as a camera shows it
Protocol = Literal["wpray", "serial"]
# Proprio fields of what the observables saw last; quaternions are (x, y, z, w), as robosuite's are.
_PROPRIO: dict[str, Callable[[Sample], FloatArray]] = {
    "eef_pos": lambda sample: sample.eef_pos,
    "eef_axis_angle": lambda sample: axis_angle(float(sample.eef_quat_wxyz[0]), sample.eef_quat_wxyz[1:]),
    "eef_quat": lambda sample: sample.eef_quat_wxyz[[1, 2, 3, 0]],
    "gripper_qpos": lambda sample: sample.gripper_qpos,
    "joint_pos": lambda sample: sample.joint_pos,
}


class LiberoEnvironment:
    """One LIBERO task at a time, in a process of its own (two would disturb each other's GL contexts).

    `protocol="wpray"`: every trial gets the scene that a fresh process, seeded with the trial's own seed, would
    give it. `protocol="serial"`: trial k gets the scene that a stock serial evaluator gives it: seeded once with the
    run's seed, reset k + 1 times.

    Observations are stock's: sampled at the substep at which stock's observables sample, and then made into the views
    and proprio fields that the policy's specification names.
    """

    def __init__(self, protocol: Protocol = "wpray") -> None:
        self.render_s = 0.0
        self._protocol = protocol
        self._task: Task | None = None
        self._scene: Scene | None = None
        self._renderer: SceneRenderer | None = None
        self._client: DrawClient | None = None
        self._recipe: tuple[bytes, str] | None = None  # of the loaded scene, and its digest
        self._serial = _SerialDraws()
        self._compiled = False

    def draw_with(self, client: DrawClient) -> None:
        """Let `client` draw what `observe` shows, so that this process needs no OpenGL for it."""
        self._client = client

    def load(self, task: Task) -> None:
        """Compile `task` (some seconds), or return at once if it is the current one."""
        if self._task == task:
            return
        self.close()
        self._scene = Scene(tasks.bddl_file(task.suite, task.task_id))
        self._states = tasks.initial_states(task.suite, task.task_id)
        self._task = task

    def reset(self, trial: Trial) -> None:
        """Reset the scene for `trial` and put it into its initial state."""
        scene = self._loaded()
        if self._protocol == "serial":
            self._serial.reset(scene, trial)
        else:
            np.random.seed(reset_seed(trial))
            scene.reset()
        self._stepper = Stepper(scene.env)
        self._stepper.set_state(self._initial(trial))
        self.render_s = 0.0

    def step(self, action: FloatArray) -> Step:
        """Execute one control step; terminated is LIBERO's `done`. The first of a process may compile."""
        if self._compiled:
            return self._stepper.step(action)
        with first_one_alone("controller"):
            step = self._stepper.step(action)
        self._compiled = True
        return step

    def observe(self, spec: ObservationSpec) -> Observation:
        """Return stock's observation after the last step or reset."""
        views = self._views(spec.cameras) if spec.cameras else {}
        truth = read_privileged(self._loaded().env) if spec.privileged else None
        return Observation(self._proprio(spec.proprio), views, truth)

    def state(self) -> State:
        """Return copies of the simulator's state and of what the observables saw."""
        data, sample = self._loaded().data, self._stepper.sample
        return {
            "eef_pos": sample.eef_pos.copy(),
            "eef_quat": sample.eef_quat_wxyz[[1, 2, 3, 0]],
            "gripper_qpos": sample.gripper_qpos.copy(),
            "qpos": data.qpos.copy(),
            "qvel": data.qvel.copy(),
            "render_qpos": sample.entry_qpos.copy(),
            "render_site_alpha": sample.site_alpha.copy(),
        }

    def scene(self) -> SceneState:
        """Return the fixture poses of this trial."""
        model = self._loaded().model
        return SceneState(model.body_pos.copy(), model.body_quat.copy())

    def render(self, state: State, scene: SceneState | None, *, camera: str, height: int, width: int) -> ImageArray:
        """Return (height, width, 3) uint8, upright: what `camera` showed at a recorded state of the loaded task."""
        model, current = self._loaded().model, self.scene()
        scene = scene or current
        model.body_pos[:], model.body_quat[:] = scene.body_pos, scene.body_quat
        try:
            image = self._rendering().render(camera, height, width, state["render_qpos"], state["render_site_alpha"])
        finally:  # the trial under way keeps its own fixtures
            model.body_pos[:], model.body_quat[:] = current.body_pos, current.body_quat
        return upright(image)

    def close(self) -> None:
        """Free the simulator and give its memory back to the system."""
        if self._scene is None:
            return
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._scene.close()
        self._scene = self._task = self._recipe = None
        self._stepper = None  # type: ignore[assignment]
        ctypes.CDLL(None).malloc_trim(0)

    def _initial(self, trial: Trial) -> FloatArray:
        if trial.own_state is None:
            state: FloatArray = self._states[trial.init_state]
            return state
        size = self._states.shape[1]
        if len(trial.own_state) != size:
            text = f"init_states_file: a state of {trial.task.name} has {len(trial.own_state)} numbers, not {size}"
            raise BadInputError(f"{text}; make it from this task's own scene")
        return np.array(trial.own_state)

    def _loaded(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("no task is loaded: call load(task) first")
        return self._scene

    def _rendering(self) -> SceneRenderer:
        if self._renderer is None:
            self._renderer = SceneRenderer(self._loaded().model)
        return self._renderer

    def _views(self, cameras: Mapping[str, ImageSpec]) -> dict[str, ImageArray]:
        """Return the pictures by role, as specified; count the time that they take."""
        began = time.perf_counter()
        altered = [role for role in cameras if self._is_altered(role)]
        wanted = {role: NATIVE if role in altered else view for role, view in cameras.items()}
        views = self._drawn(wanted) if self._client is None else self._drawn_elsewhere(self._client, wanted)
        for role in altered:
            views[role] = policy_view(self._altered(views[role]), cameras[role])
        self.render_s += time.perf_counter() - began
        return views

    def _is_altered(self, role: str) -> bool:
        """Return True if the environment changes what the role's camera shows, in its own size."""
        return False

    def _altered(self, picture: ImageArray) -> ImageArray:
        """Return the picture of such a camera, changed."""
        raise NotImplementedError

    def _drawn(self, views: Mapping[str, ImageSpec]) -> dict[str, ImageArray]:
        sample, cameras = self._stepper.sample, [CAMERAS[role] for role in views]
        pictures = self._rendering().pictures(cameras, CAMERA_SIZE, CAMERA_SIZE, sample.entry_qpos, sample.site_alpha)
        return {role: policy_view(picture, views[role]) for role, picture in zip(views, pictures, strict=True)}

    def _drawn_elsewhere(self, client: DrawClient, views: Mapping[str, ImageSpec]) -> dict[str, ImageArray]:
        sample, scene = self._stepper.sample, self._loaded()
        if self._recipe is None:
            data = scene.recipe(self._asset_roots())
            self._recipe = data, model_digest(data)
        data, digest = self._recipe
        pose = {QPOS: sample.entry_qpos.copy(), SITE_ALPHA: sample.site_alpha.copy(), **scene.changes()}
        named = {role: (CAMERAS[role], view) for role, view in views.items()}
        return client.draw(DrawRequest(digest, pose, named), lambda: data)

    def _asset_roots(self) -> Roots:
        return asset_roots()

    def _proprio(self, fields: Sequence[str]) -> FloatArray:
        sample = self._stepper.sample
        return np.concatenate([_PROPRIO[name](sample) for name in fields])


class _SerialDraws:
    """Resets of a serial evaluator: trial k follows k others, each of which drew random numbers.

    The generator's state before each reset is kept, so that a trial costs one reset whatever its number.
    """

    def __init__(self) -> None:
        self._of: tuple[Task, int] | None = None  # task and seed
        self._states: list[Any] = []

    def reset(self, scene: Scene, trial: Trial) -> None:
        if self._of != (trial.task, trial.seed):
            np.random.seed(trial.seed)
            self._of, self._states = (trial.task, trial.seed), [np.random.get_state()]
        for number in range(len(self._states) - 1, trial.init_state):
            np.random.set_state(self._states[number])
            scene.reset(rounds=number + 1)
            self._states.append(np.random.get_state())
        np.random.set_state(self._states[trial.init_state])
        scene.reset(rounds=trial.init_state + 1)
