"""Stand-ins for machines that lack something: environments for subprocesses."""

from __future__ import annotations

import os
from pathlib import Path

_NO_OSMESA = """
import ctypes, ctypes.util
_find, _init = ctypes.util.find_library, ctypes.CDLL.__init__
def find_library(name):
    return None if "OSMesa" in name else _find(name)
def init(self, name, *args, **kwargs):
    if name and "OSMesa" in str(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")
    _init(self, name, *args, **kwargs)
ctypes.util.find_library, ctypes.CDLL.__init__ = find_library, init
"""
# What the official package runs at its first import, shortened.
_OFFICIAL_LIBERO = """
import os, yaml
config = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
path = os.path.join(config, "config.yaml")
if not os.path.exists(path):
    os.makedirs(config, exist_ok=True)
    answer = input("Do you want to specify a custom path for the dataset folder? (Y/N): ").lower()
def get_libero_path(name):
    with open(path) as file:
        return yaml.safe_load(file)[name]
"""


def without_osmesa(folder: Path) -> dict[str, str]:
    """An environment in which Python finds no libOSMesa, as on a machine that does not have it."""
    (folder / "sitecustomize.py").write_text(_NO_OSMESA)
    kept = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return {**kept, "PYTHONPATH": f"{folder}{os.pathsep}{_project()}"}


def with_official_libero(folder: Path) -> dict[str, str]:
    """An environment whose LIBERO asks where data sets are when it is first imported, and whose home is fresh."""
    package = folder / "libero" / "libero"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_OFFICIAL_LIBERO)
    (folder / "libero" / "__init__.py").write_text("")
    kept = {name: value for name, value in os.environ.items() if name != "LIBERO_CONFIG_PATH"}
    home = folder / "home"
    home.mkdir()
    return {**kept, "HOME": str(home), "PYTHONPATH": f"{folder}{os.pathsep}{_project()}"}


def _project() -> Path:
    return Path(__file__).parent.parent
