"""The scene camera's pose in a variant, computed and rounded as LIBERO-plus's scenes do before they compile.

Each turn is rounded to four decimals before the next one, also where nothing is turned: so the camera of variants that
leave it alone differs from LIBERO's in the fifth decimal.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from wpray.benchmarks.libero.observed import CAMERAS
from wpray.benchmarks.libero_plus.variants import View
from wpray.types import FloatArray

CAMERA = CAMERAS["base"]
_PIVOT = np.array([0.0, 0.0, 0.8])  # m
_DECIMALS = 4


def view_pose(position: FloatArray, quaternion: FloatArray, view: View) -> tuple[FloatArray, FloatArray]:
    """Return position (3,) and quaternion (4,) w, x, y, z of a camera after the changes of `view`."""
    if view.up:
        rise = _about_y(view.up)
        position, quaternion = _rounded(rise.apply(position - _PIVOT) + _PIVOT), _turned(rise, quaternion)
    sweep = _about_z(view.around)
    position, quaternion = _rounded(sweep.apply(position)), _turned(sweep, quaternion)
    factor = float(view.distance / 100)
    if factor != 1.0:
        position = _rounded(_PIVOT + (position - _PIVOT) * factor)
    if view.turn:
        quaternion = _turned(_about_z(view.turn), quaternion)
    if view.tilt:
        quaternion = _turned(_about_y(view.tilt), quaternion)
    return position, quaternion


def place_camera(env: Any, view: View) -> None:
    """Put the scene camera of a compiled LIBERO environment where compiling with the changed pose would."""
    written = env.model.root.find(f".//camera[@name='{CAMERA}']")  # before compiling, which normalizes quaternions
    position, quaternion = (np.array(written.get(name).split(), dtype=np.float64) for name in ("pos", "quat"))
    model, camera = env.sim.model._model, env.sim.model.camera_name2id(CAMERA)
    model.cam_pos[camera], model.cam_quat[camera] = _compiled(*view_pose(position, quaternion, view))


def _compiled(position: FloatArray, quaternion: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return what MuJoCo makes of a camera's pose."""
    texts = (" ".join(map(repr, values.tolist())) for values in (position, quaternion))
    camera = '<mujoco><worldbody><camera pos="{}" quat="{}"/></worldbody></mujoco>'.format(*texts)
    model = mujoco.MjModel.from_xml_string(camera)
    return model.cam_pos[0], model.cam_quat[0]


def _about_y(degrees: int) -> Rotation:
    return Rotation.from_rotvec(np.radians(-degrees) * np.array([0, 1, 0]))


def _about_z(degrees: int) -> Rotation:
    return Rotation.from_euler("z", degrees, degrees=True)


def _turned(rotation: Rotation, quaternion: FloatArray) -> FloatArray:
    x, y, z, w = (rotation * Rotation.from_quat(np.roll(quaternion, -1))).as_quat().tolist()
    return _rounded(np.array([w, x, y, z]))


def _rounded(values: FloatArray) -> FloatArray:
    return np.array([round(value, _DECIMALS) for value in values.tolist()])
