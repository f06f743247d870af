"""Simulator truth for scripted policies: object geometry as seen from above, the hand, and what the task asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import scipy

from wpray.benchmarks.libero.scene import gripper_axis
from wpray.types import FloatArray, ObjectState, PrivilegedState


def read_privileged(env: Any) -> PrivilegedState:
    """Return the scene as it is now; `env` is a LIBERO environment."""
    data, robot = env.sim.data._data, env.robots[0]
    interest = list(env.obj_of_interest)
    return PrivilegedState(
        eef_pos=np.array(data.site_xpos[robot.eef_site_id]),
        eef_rotation=np.array(data.site_xmat[robot.eef_site_id].reshape(3, 3)),
        finger_axis=gripper_axis(env),
        objects=tuple(_object_state(env, name) for name in env.objects_dict),
        target=interest[0] if interest else "",
        goal=interest[1] if len(interest) > 1 else "",
    )


def _object_state(env: Any, name: str) -> ObjectState:
    model, data, root = env.sim.model._model, env.sim.data._data, env.obj_body_id[name]
    vertices = np.concatenate(list(_collision_vertices(model, data, root)))
    outline = vertices[:, :2][scipy.spatial.ConvexHull(vertices[:, :2]).vertices]
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    return ObjectState(name, np.array(data.xpos[root]), outline, float(low), float(high))


def _collision_vertices(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> Iterator[FloatArray]:
    """Yield the world-frame vertices (or the bounding box's corners) of every colliding geom below body `root`."""
    for geom in np.flatnonzero(model.geom_contype):
        if not _is_below(model, model.geom_bodyid[geom], root):
            continue
        yield _local_vertices(model, int(geom)) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]


def _is_below(model: mujoco.MjModel, body: int, root: int) -> bool:
    while body not in (0, root):
        body = model.body_parentid[body]
    return bool(body == root)


def _local_vertices(model: mujoco.MjModel, geom: int) -> FloatArray:
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first = model.mesh_vertadr[mesh]
        return np.asarray(model.mesh_vert[first : first + model.mesh_vertnum[mesh]], dtype=np.float64)
    half = {
        int(mujoco.mjtGeom.mjGEOM_BOX): size,
        int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): size,
        int(mujoco.mjtGeom.mjGEOM_CYLINDER): size[[0, 0, 1]],
        int(mujoco.mjtGeom.mjGEOM_CAPSULE): size[[0, 0, 1]] + [0, 0, size[0]],
    }.get(int(kind), np.full(3, size[0]))
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
    return np.asarray(corners * half)
