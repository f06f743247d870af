"""Camera images of a LIBERO scene, pixel-identical to stock robosuite's, of any recorded state."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from wpray.benchmarks.libero.readback import Readback
from wpray.system import egl_devices, gl
from wpray.types import ImageArray

_MOST_GEOMS = 1000  # of a scene, as robosuite says
_CONTEXT_SIZE = (640, 480)  # width and height of the GL context, as robosuite's


class GlContext:
    """OpenGL context of a process. Several scenes can be drawn in one."""

    def __init__(self) -> None:
        """Make the context that robosuite makes, without robosuite. Raises what the GL library raises on failure."""
        renderer = gl.resolve("auto")
        if "MUJOCO_GL" not in os.environ:
            gl.prepare(renderer)
        egl_devices.set_egl_device()
        # robosuite has copies of these classes. `mujoco.GLContext` would be the one that the environment named when
        # MuJoCo was imported, perhaps too early.
        self._context: Any = importlib.import_module(f"mujoco.{renderer}").GLContext(*_CONTEXT_SIZE)

    def make_current(self) -> None:
        """Let OpenGL draw into this context."""
        self._context.make_current()

    def close(self) -> None:
        """Free the context, after all that was made in it."""
        self._context.free()


class SceneRenderer:
    """Renderer of one scene's states.

    Images show the kinematics at the entry of the sampled substep, so states are posed in a second MjData: the
    simulation itself is not touched.
    """

    def __init__(self, model: mujoco.MjModel, context: GlContext | None = None) -> None:
        """Upload the scene (a second or two with OSMesa) into `context`, or into a context of its own.

        Raises what the GL library raises if it does not work.
        """
        self._owns_gl = context is None
        self._gl = GlContext() if context is None else context
        self._model, self._pose = model, mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=_MOST_GEOMS)
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._options.geomgroup[:2] = 0, 1  # no collision geoms, as LIBERO has it
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)

    def render(self, camera: str, height: int, width: int, qpos: Any, site_alpha: Any) -> ImageArray:
        """Return (height, width, 3) uint8, rows from the bottom as robosuite's; `qpos` (nq,), `site_alpha` (nsite,)."""
        (picture,) = self.pictures([camera], height, width, qpos, site_alpha)
        return picture

    def pictures(self, cameras: Sequence[str], height: int, width: int, qpos: Any, site_alpha: Any) -> list[ImageArray]:
        """Return the same for each of several cameras."""
        with self._posed(qpos, site_alpha):
            return [self._picture(camera, height, width) for camera in cameras]

    def submit(self, cameras: Sequence[str], height: int, width: int, qpos: Any, site_alpha: Any) -> list[Readback]:
        """Submit the same, and return the pictures on their way; other scenes may be submitted before they are read."""
        with self._posed(qpos, site_alpha):
            return [self._submitted(camera, height, width) for camera in cameras]

    def close(self) -> None:
        """Free what the scene takes in OpenGL."""
        self._gl.make_current()
        self._context.free()
        if self._owns_gl:
            self._gl.close()

    @contextlib.contextmanager
    def _posed(self, qpos: Any, site_alpha: Any) -> Iterator[None]:
        """Make the GL context current, and put the scene into a state; give the sites their opacity back afterwards."""
        model, data = self._model, self._pose
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        current = model.site_rgba[:, 3].copy()
        model.site_rgba[:, 3] = site_alpha
        try:
            self._gl.make_current()
            yield
        finally:
            model.site_rgba[:, 3] = current

    def _picture(self, camera: str, height: int, width: int) -> ImageArray:
        viewport = self._draw(camera, height, width)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return picture

    def _submitted(self, camera: str, height: int, width: int) -> Readback:
        self._draw(camera, height, width)
        return Readback(self._context, height, width)

    def _draw(self, camera: str, height: int, width: int) -> mujoco.MjrRect:
        """Let OpenGL draw into the context's buffer, and return the part of it that is the picture."""
        self._make_room(height, width)
        self._camera.fixedcamid = self._model.camera(camera).id
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, self._pose, self._options, self._perturbation, self._camera, every, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(viewport, self._scene, self._context)
        return viewport

    def _make_room(self, height: int, width: int) -> None:
        """Replace the context by one with a larger buffer if the picture needs it."""
        context, size = self._context, self._model.vis.global_
        if width <= context.offWidth and height <= context.offHeight:
            return
        before = size.offwidth, size.offheight
        size.offwidth, size.offheight = max(width, context.offWidth), max(height, context.offHeight)
        context.free()
        try:
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
        finally:
            size.offwidth, size.offheight = before


def upright(image: ImageArray) -> ImageArray:
    """Return robosuite's image turned so that up is up (it is upside down), left and right as the camera sees them."""
    return np.ascontiguousarray(image[::-1])
