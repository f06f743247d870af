"""Camera images of a LIBERO scene, pixel-identical to stock robosuite's, of any recorded state."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from wpray.benchmarks.libero.imports import load
from wpray.system import egl_devices
from wpray.types import ImageArray


class SceneRenderer:
    """Renderer of one scene's states. One a process, because robosuite's GL contexts disturb each other.

    Images show the kinematics at the entry of the sampled substep, so states are posed in a second MjData: the
    simulation itself is not touched.
    """

    def __init__(self, env: Any) -> None:
        """Make a GL context for `env` (a second or two). Raises what the GL library raises if it does not work."""
        binding = load("robosuite.utils.binding_utils")
        egl_devices.set_egl_device()
        self._model = env.sim.model
        self._pose = binding.MjData(self._model)
        self._context = binding.MjRenderContextOffscreen(_Posed(self._model, self._pose), device_id=-1)
        self._context.vopt.geomgroup[0] = 0
        self._context.vopt.geomgroup[1] = 1

    def render(self, camera: str, height: int, width: int, qpos: Any, site_alpha: Any) -> ImageArray:
        """Return (height, width, 3) uint8, rows from the bottom as robosuite's; `qpos` (nq,), `site_alpha` (nsite,)."""
        model, data = self._model._model, self._pose._data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        current = model.site_rgba[:, 3].copy()
        model.site_rgba[:, 3] = site_alpha
        try:
            self._context.gl_ctx.make_current()
            self._context.render(width=width, height=height, camera_id=self._model.camera_name2id(camera))
            image: ImageArray = self._context.read_pixels(width, height)
        finally:
            model.site_rgba[:, 3] = current
        return image


class _Posed:
    """Stand-in for the simulation of a robosuite render context, with a pose of our own."""

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data = model, data
        self._context: Any = None

    def forward(self) -> None:
        mujoco.mj_kinematics(self.model._model, self.data._data)

    def add_render_context(self, context: Any) -> None:
        self._context = None  # the context belongs to SceneRenderer, which outlives it


def upright(image: ImageArray) -> ImageArray:
    """Return robosuite's image turned so that up is up (it is upside down), left and right as the camera sees them."""
    return np.ascontiguousarray(image[::-1])
