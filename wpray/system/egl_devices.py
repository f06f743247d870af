"""Selection of the GPU that an environment renders on, as the number that EGL gives it.

EGL and CUDA number the GPUs of a machine differently, so a number of one is never used as a number of the other: the
driver reports for each EGL device its CUDA device. It is queried in a process of its own that hides no GPU, because the
answer depends on CUDA_VISIBLE_DEVICES. This file is also that program, so it imports nothing of wpray.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

_DEVICE = "MUJOCO_EGL_DEVICE_ID"  # MuJoCo and robosuite read it when they make a context
_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_TIMEOUT_S = 30
_MOST_DEVICES = 64
_EGL_EXTENSIONS, _EGL_CUDA_DEVICE_NV = 0x3055, 0x323A


def set_egl_device(
    environ: MutableMapping[str, str] = os.environ,
    owned: Callable[[], Iterable[str]] = tuple,
    name: str = "",
    place: int | None = None,
) -> None:
    """Select the GPU that this process renders on with EGL, unless the user has named one.

    Call it before a context is made. `owned` returns the GPUs of policies on this machine, as in CUDA_VISIBLE_DEVICES:
    they are taken only if there is no other. It is called only if there is a choice. Processes spread over the GPUs
    by `name`, or take them in turn by `place`.
    """
    if environ.get("MUJOCO_GL") == "egl" and _DEVICE not in environ:
        device = select_egl_device(environ, owned, name, place)
        if device is not None:
            environ[_DEVICE] = str(device)


def select_egl_device(
    environ: Mapping[str, str],
    owned: Callable[[], Iterable[str]] = tuple,
    name: str = "",
    place: int | None = None,
) -> int | None:
    """Return EGL's number of a GPU that CUDA_VISIBLE_DEVICES allows; None if any GPU will do."""
    visible = environ.get(_VISIBLE)
    entries = None if visible is None else [entry.strip() for entry in visible.split(",")]
    order = _order(entries or (), environ)
    cuda_numbers = _ask_driver({**environ, _ORDER: order})
    devices = _devices(entries, cuda_numbers, order)
    if not devices:
        return None if entries is None else _unknown(entries[0], len(cuda_numbers))
    if len(devices) > 1:
        taken = list(owned())
        order = _order(taken, environ)
        theirs = _devices(taken, _ask_driver({**environ, _ORDER: order}), order) if taken else []
        devices = [device for device in devices if device not in theirs] or devices
    return random.Random(name).choice(devices) if place is None else devices[place % len(devices)]


def _order(entries: Iterable[str], environ: Mapping[str, str]) -> str:
    """Return the order that gives numbers their meaning: this process's, or nvidia-smi's for UUIDs."""
    named = any(not entry.isdecimal() for entry in entries)
    return "PCI_BUS_ID" if named else environ.get(_ORDER, "FASTEST_FIRST")


def _devices(entries: Sequence[str] | None, cuda_numbers: Sequence[int | None], order: str) -> list[int]:
    """Return EGL's numbers of the GPUs that `entries` name (None: of all), in the order of `entries`."""
    egl = {cuda: number for number, cuda in enumerate(cuda_numbers) if cuda is not None}
    if entries is None:
        return sorted(egl.values())
    uuids = _uuids() if order == "PCI_BUS_ID" and not all(entry.isdecimal() for entry in entries) else ()
    wanted: list[int | None] = []
    for entry in entries:
        by_uuid = next((number for number, uuid in enumerate(uuids) if entry and uuid.startswith(entry)), None)
        wanted.append(int(entry) if entry.isdecimal() else by_uuid)
    return [egl[number] for number in wanted if number in egl]


def _unknown(entry: str, num_devices: int) -> int:
    """Return a device where the driver does not answer: 0 in a container with one GPU, else the same number.

    It is never None: robosuite would read CUDA_VISIBLE_DEVICES as EGL numbers, and fail on UUIDs.
    """
    return int(entry) if entry.isdecimal() and int(entry) < num_devices else 0


def _uuids() -> Sequence[str]:
    """Return the UUIDs of the GPUs, by PCI bus id."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return done.stdout.split()


def _ask_driver(environ: Mapping[str, str]) -> list[int | None]:
    """Return each EGL device's CUDA number when nothing hides a GPU; None for a device that is not CUDA's."""
    unhidden = {name: value for name, value in environ.items() if name != _VISIBLE}
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True, env=unhidden)
        found: list[int | None] = json.loads(done.stdout)
        return found
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _query() -> list[int | None]:
    """Return the result of `_ask_driver` for this process. Raises OSError without libEGL."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    handle, integer = ctypes.c_void_p, ctypes.c_int
    list_devices = _function(egl, b"eglQueryDevicesEXT", ctypes.c_uint, integer, handle, handle)
    text_of = _function(egl, b"eglQueryDeviceStringEXT", ctypes.c_char_p, handle, integer)
    number_of = _function(egl, b"eglQueryDeviceAttribEXT", ctypes.c_uint, handle, integer, handle)
    devices, count = (handle * _MOST_DEVICES)(), integer()
    if not list_devices(_MOST_DEVICES, devices, ctypes.byref(count)):
        return []
    found: list[int | None] = []
    for device in devices[: count.value]:
        number = ctypes.c_ssize_t(-1)
        cuda = b"EGL_NV_device_cuda" in (text_of(device, _EGL_EXTENSIONS) or b"").split()
        known = cuda and number_of(device, _EGL_CUDA_DEVICE_NV, ctypes.byref(number)) and number.value >= 0
        found.append(number.value if known else None)
    return found


def _function(library: Any, name: bytes, result: Any, *arguments: Any) -> Any:
    address = library.eglGetProcAddress(name)
    if not address:
        raise OSError(f"libEGL has no {name.decode()}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


if __name__ == "__main__":
    print(json.dumps(_query()))
