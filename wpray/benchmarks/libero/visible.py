"""Difference between a model in use and how it was compiled, as far as it shows.

Resets place fixtures, predicates light stoves, and variants move cameras, all by writing into the compiled model. Where
another process draws, it compiles the model itself, and a pose holds what has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Fields = Mapping[str, NDArray[Any]]  # of a model, by name
# What pictures depend on and can be changed without compiling. The rest of a model (meshes, textures, the tree of
# bodies) stays as it was compiled.
_VISIBLE = (
    *("body_pos", "body_quat", "body_ipos", "body_mass", "body_subtreemass", "jnt_pos", "jnt_axis", "qpos0"),
    *("geom_pos", "geom_quat", "geom_size", "geom_rgba", "geom_group", "geom_matid"),
    *("site_pos", "site_quat", "site_size", "site_rgba", "site_group", "site_matid"),
    *("cam_pos", "cam_quat", "cam_fovy", "cam_mode", "cam_pos0", "cam_poscom0", "cam_mat0"),
    *("light_pos", "light_dir", "light_active", "light_castshadow", "light_pos0", "light_poscom0", "light_dir0"),
    *("light_ambient", "light_diffuse", "light_specular", "light_attenuation", "light_cutoff", "light_exponent"),
    *("mat_rgba", "mat_emission", "mat_specular", "mat_shininess", "mat_reflectance", "mat_texid", "mat_texrepeat"),
)


def visible_fields(model: mujoco.MjModel) -> Fields:
    """Return copies of the fields that pictures depend on and that a simulation may change."""
    return {name: getattr(model, name).copy() for name in _VISIBLE if hasattr(model, name)}


def changed_fields(model: mujoco.MjModel, compiled: Fields) -> dict[str, NDArray[Any]]:
    """Return copies of the fields that differ from how they were compiled."""
    now = ((name, getattr(model, name), before) for name, before in compiled.items())
    return {name: values.copy() for name, values, before in now if not np.array_equal(values, before)}
