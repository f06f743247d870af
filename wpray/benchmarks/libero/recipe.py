"""Compiled scenes as something to send: the text that MuJoCo compiled, and a digest of the meshes and textures.

A compiled scene has 150 to 260 MB, its text has 66 kB, and any machine with the same files compiles the same from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import mujoco
import numpy as np

from wpray.benchmarks.libero.compiled_models import compiled
from wpray.errors import BadInputError, wrapping_errors

Roots = Mapping[str, Path]  # folders of meshes and textures by name; each machine has them in a place of its own
# What compiling takes from files.
_FROM_FILES = (
    *("tex_data", "hfield_data", "skin_vert", "mesh_vert", "mesh_normal", "mesh_texcoord"),
    *("mesh_face", "mesh_facenormal", "mesh_facetexcoord"),
)
_QUOTES = {'"': "&quot;"}
_REMEDY = "install the packages and assets of the environments' machines on this one"
_MARK = '"$'  # before a root's name in the text


def recipe_of(xml: str, model: mujoco.MjModel, roots: Roots) -> bytes:
    """Return what `compile_recipe` needs to compile the model again; `xml` is what it was compiled from."""
    for name, folder in roots.items():
        xml = xml.replace(_written(folder), f"{_MARK}{name}/")
    return json.dumps({"mujoco": mujoco.__version__, "files": _digest_of_files(model), "xml": xml}).encode()


def compile_recipe(data: bytes, roots: Roots) -> mujoco.MjModel:
    """Return the model, compiled from this machine's files (half a second to three seconds).

    Raises BadInputError if this machine has another MuJoCo or other files than the one that made the recipe.
    """

    def unreadable(error: Exception) -> BadInputError:
        return BadInputError(f"scene to draw: it does not compile here: {' '.join(str(error).split())}; {_REMEDY}")

    with wrapping_errors(unreadable, BadInputError, caught=ValueError):
        recipe = json.loads(data)
        if recipe["mujoco"] != mujoco.__version__:
            found = f"compiled by MuJoCo {recipe['mujoco']}, and this machine has {mujoco.__version__}"
            raise BadInputError(f"scene to draw: {found}; {_REMEDY}")
        xml = recipe["xml"]
        for name, folder in roots.items():
            xml = xml.replace(f"{_MARK}{name}/", _written(folder))
        model = compiled(xml)
    if _digest_of_files(model) != recipe["files"]:
        raise BadInputError(f"scene to draw: this machine's meshes or textures are others; {_REMEDY}")
    return model


def _written(folder: Path) -> str:
    """Return how the paths of files in the folder begin in XML."""
    return f'"{escape(str(folder), _QUOTES)}/'


def _digest_of_files(model: mujoco.MjModel) -> str:
    """Return a digest of what was read from files (0.1 s)."""
    digest = hashlib.sha256()
    for name in _FROM_FILES:
        digest.update(np.ascontiguousarray(getattr(model, name)).data)
    return digest.hexdigest()
