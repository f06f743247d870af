"""OpenGL library that renders the cameras, and the environment variables that make MuJoCo use it.

Call `prepare` before MuJoCo or robosuite is imported, because both read these variables at import. The user's own
values stay. egl_devices.py selects the GPU that EGL renders on.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Literal

from wpray.errors import BadInputError
from wpray.system.one_thread import ONE_THREAD

Renderer = Literal["osmesa", "egl"]

_LIBRARIES: dict[Renderer, tuple[str, str]] = {
    "osmesa": ("OSMesa", "apt-get install -y libosmesa6 libgl1 libglib2.0-0"),
    "egl": ("EGL", "apt-get install -y libegl1 libgles2 libgl1 libglib2.0-0"),
}
_ALWAYS = {**ONE_THREAD, "PYTHONFAULTHANDLER": "1"}
_NVIDIA_DEVICE = Path("/dev/nvidiactl")
_VENDOR_FILE = "10_nvidia.json"
_VENDOR_FOLDERS = (
    "/usr/share/glvnd/egl_vendor.d",
    "/etc/glvnd/egl_vendor.d",
    "/usr/local/nvidia/share/glvnd/egl_vendor.d",
    "/usr/local/share/glvnd/egl_vendor.d",
)


def select_renderer(wanted: str, environ: Mapping[str, str] = os.environ) -> Renderer:
    """Return the renderer that `wanted` (auto, osmesa or egl) means on this machine.

    `auto` is MUJOCO_GL or PYOPENGL_PLATFORM if set, else EGL where an NVIDIA driver is present and OSMesa elsewhere.
    Raises BadInputError, naming the package to install, if its library is missing.
    """
    renderer = resolve(wanted, environ)
    library, remedy = _LIBRARIES[renderer]
    if ctypes.util.find_library(library) is None:
        raise BadInputError(f"env.renderer {renderer}: the library lib{library} is missing; as root: {remedy}")
    return renderer


def resolve(wanted: str, environ: Mapping[str, str] = os.environ) -> Renderer:
    """Return the same as `select_renderer`, whether or not the library is installed."""
    return asked_for(wanted, environ) or ("egl" if _has_nvidia_egl() else "osmesa")


def asked_for(wanted: str, environ: Mapping[str, str] = os.environ) -> Renderer | None:
    """Return the renderer that `wanted`, MUJOCO_GL or PYOPENGL_PLATFORM names; None if the machine decides."""
    known: dict[str, Renderer] = {"osmesa": "osmesa", "egl": "egl"}
    asked = (wanted, environ.get("MUJOCO_GL", "").lower(), environ.get("PYOPENGL_PLATFORM", "").lower())
    return next((known[name] for name in asked if name in known), None)


def prepare(renderer: Renderer, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what MuJoCo, robosuite and their libraries read at import: renderer, one thread each.

    Only the two renderer variables are overwritten: they must agree, and `select_renderer` has read them.
    """
    environ["MUJOCO_GL"] = renderer
    environ["PYOPENGL_PLATFORM"] = renderer
    for name, value in _ALWAYS.items():
        environ.setdefault(name, value)
    if renderer == "egl":
        _point_to_vendor(environ)


def prepare_without(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what `prepare` does for a process that draws nothing: no OpenGL library of the machine is loaded.

    MuJoCo and robosuite then import GLFW, which is a Python package that looks for a display only when it is used.
    """
    environ["MUJOCO_GL"] = "glx"
    for name, value in _ALWAYS.items():
        environ.setdefault(name, value)


def _has_nvidia_egl() -> bool:
    return _NVIDIA_DEVICE.exists() and ctypes.util.find_library("EGL") is not None and _vendor_file() is not None


def _vendor_file() -> Path | None:
    return next((path for folder in _VENDOR_FOLDERS if (path := Path(folder, _VENDOR_FILE)).exists()), None)


def _point_to_vendor(environ: MutableMapping[str, str]) -> None:
    """Name the driver's vendor file, because containers mount it where libglvnd does not look."""
    found = _vendor_file()
    if found is not None and str(found.parent) not in _VENDOR_FOLDERS[:2]:
        environ.setdefault("__EGL_VENDOR_LIBRARY_FILENAMES", str(found))
