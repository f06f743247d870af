"""Shared by all tests: what a machine cannot run is skipped, with the reason."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports MuJoCo: tests render with OSMesa, which every machine can have.
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _has_libero() -> bool:
    renderer = os.environ["MUJOCO_GL"] == "egl" or ctypes.util.find_library("OSMesa") is not None
    return renderer and importlib.util.find_spec("libero") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs a GPU or LIBERO where there is none."""
    gpu = any(item.get_closest_marker("gpu") for item in items) and _has_gpu()
    libero = _has_libero()
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
        if item.get_closest_marker("libero") and not libero:
            item.add_marker(pytest.mark.skip(reason="LIBERO or OSMesa is not installed"))


@contextlib.contextmanager
def _environment_given_back() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        if os.environ != before:
            for name in os.environ.keys() - before.keys():
                if not name.startswith("RAY_"):  # Ray read it and keeps it in memory: nodes started without it differ
                    del os.environ[name]
            os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def environment_of_the_module() -> Iterator[None]:
    """Give os.environ back as it was before the module, whose fixtures may call commands that set variables."""
    with _environment_given_back():
        yield


@pytest.fixture(autouse=True)
def environment_of_the_test() -> Iterator[None]:
    """Give os.environ back as it was before the test, which may call commands that set variables for themselves."""
    with _environment_given_back():
        yield


@pytest.fixture(scope="session")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with openpi's published server and client, whose numpy is older than wpray's."""
    from tests.policies.remote.servers import own_python

    packages = ("openpi-server==0.1.0", "openpi-client==0.1.2", "typing-extensions")  # the last is not declared
    return own_python(tmp_path_factory.mktemp("openpi"), *packages)
