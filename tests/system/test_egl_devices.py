"""The GPU that renders: the driver maps EGL devices to CUDA devices, whose numbers differ."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from wpray.system import egl_devices

CUDA_NUMBERS = [None, 2, 0, 3, 1]
EGL_OF = {0: 2, 1: 4, 2: 1, 3: 3}
UUIDS = [f"GPU-{number}{number}aa-bb" for number in range(4)]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Fake a machine's driver and nvidia-smi; return the orders in which CUDA numbers were requested."""
    orders: list[str] = []

    def ask(environ: dict[str, str]) -> list[int | None]:
        orders.append(environ["CUDA_DEVICE_ORDER"])
        return CUDA_NUMBERS

    monkeypatch.setattr(egl_devices, "_ask_driver", ask)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(UUIDS) + "\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return orders


@pytest.mark.parametrize("number", range(4))
def test_the_gpu_that_ray_assigned_is_the_one_that_renders(number: int) -> None:
    assert egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": str(number)}) == EGL_OF[number]
    assert egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": UUIDS[number]}) == EGL_OF[number]
    assert egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": UUIDS[number][:6]}) == EGL_OF[number]


def test_those_that_have_places_take_the_gpus_in_turn() -> None:
    found = [egl_devices.select_egl_device({}, place=place) for place in (0, 1, 4, -1, -2)]
    assert found == [1, 2, 1, 4, 3]


def test_numbers_mean_what_they_mean_to_cuda_and_uuids_are_nvidia_smis(machine: list[str]) -> None:
    egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": "1"})
    egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": UUIDS[1]})
    assert machine == ["FASTEST_FIRST", "PCI_BUS_ID", "PCI_BUS_ID"]


def test_environments_spread_over_the_gpus_that_no_policy_owns() -> None:
    names = [f"env-{number}" for number in range(0, 400, 2)]
    for owned in (["0", "3"], [UUIDS[0], UUIDS[3]]):
        found = Counter(egl_devices.select_egl_device({}, lambda owned=owned: owned, name) for name in names)
        assert set(found) == {EGL_OF[1], EGL_OF[2]}
        assert min(found.values()) > 70
    everywhere = Counter(egl_devices.select_egl_device({}, list, name) for name in names)
    assert set(everywhere) == set(EGL_OF.values())


def test_where_policies_own_every_gpu_they_are_shared() -> None:
    found = {egl_devices.select_egl_device({}, lambda: ["0", "1", "2", "3"], f"env-{number}") for number in range(50)}
    assert found == set(EGL_OF.values())


def test_an_assigned_gpu_is_kept_without_asking_for_the_policies() -> None:
    def owned() -> list[str]:
        raise AssertionError("there is no choice")

    assert egl_devices.select_egl_device({"CUDA_VISIBLE_DEVICES": "2"}, owned) == EGL_OF[2]


@pytest.mark.parametrize(
    ("visible", "devices", "found"),
    [(None, [None, None], None), ("1", [None, None], 1), ("1", [None], 0), ("GPU-x", [None], 0), ("", [], 0)],
)
def test_without_an_answer_of_the_driver(
    visible: str | None, devices: list[None], found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egl_devices, "_ask_driver", lambda _: devices)
    assert egl_devices.select_egl_device({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_what_the_user_named_stays_and_osmesa_has_no_device() -> None:
    for given in ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "7"}, {"MUJOCO_GL": "osmesa"}):
        environ = {**given, "CUDA_VISIBLE_DEVICES": "1"}
        egl_devices.set_egl_device(environ)
        assert environ == {**given, "CUDA_VISIBLE_DEVICES": "1"}
    environ = {"MUJOCO_GL": "egl", "CUDA_VISIBLE_DEVICES": "1"}
    egl_devices.set_egl_device(environ)
    assert environ["MUJOCO_EGL_DEVICE_ID"] == "4"


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="libEGL is not installed")
def test_a_real_libegl_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = egl_devices._ask_driver({**os.environ, "CUDA_VISIBLE_DEVICES": "0"})
    assert found, "no EGL device at all"
    assert all(number is None or number >= 0 for number in found)


_DRIVER = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static const int cuda[] = {-1, 2, 0, 3, 1};
static unsigned list(int most, void **out, int *count) {
    for (int i = 0; i < 5 && i < most; i++) out[i] = (void *)(intptr_t)(i + 1);
    *count = 5;
    return 1;
}
static const char *text(void *device, int name) {
    return (intptr_t)device == 1 ? "EGL_MESA_device_software" : "EGL_EXT_device_drm EGL_NV_device_cuda";
}
static unsigned attribute(void *device, int name, intptr_t *value) {
    const char *order = getenv("CUDA_DEVICE_ORDER");
    *value = cuda[(intptr_t)device - 1];
    if (order && !strcmp(order, "FASTEST_FIRST")) *value = 3 - *value;
    return name == 0x323A && !getenv("CUDA_VISIBLE_DEVICES");
}
void *eglGetProcAddress(const char *name) {
    if (!strcmp(name, "eglQueryDevicesEXT")) return list;
    if (!strcmp(name, "eglQueryDeviceStringEXT")) return text;
    if (!strcmp(name, "eglQueryDeviceAttribEXT")) return attribute;
    return NULL;
}
"""


def test_an_nvidia_like_libegl_is_asked_with_every_gpu_in_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = tmp_path / "egl.c"
    source.write_text(_DRIVER)
    library = tmp_path / "libEGL.so.1"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}
    assert egl_devices.select_egl_device({**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == 4
    assert egl_devices.select_egl_device({**environ, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == 1


@pytest.mark.libero
def test_robosuite_imports_where_egls_number_is_none_of_cudas() -> None:
    program = "from wpray.benchmarks.libero.imports import load; load('robosuite'); import os; print(os.environ['X'])"
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-5bb", "MUJOCO_EGL_DEVICE_ID": "4", "MUJOCO_GL": "osmesa"}
    program = program.replace("X", "CUDA_VISIBLE_DEVICES")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "GPU-5bb", done.stderr
