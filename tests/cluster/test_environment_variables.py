"""Environment variables are set where they are read, and the user's own values stay."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from wpray.cluster import process_env, setup
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration import actors
from wpray.policies.factory import policy_spec
from wpray.system import gl

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")


def test_rendering_gets_its_variables_and_one_thread_for_each_environment() -> None:
    environ: dict[str, str] = {}
    gl.prepare("osmesa", environ)
    assert (environ["MUJOCO_GL"], environ["PYOPENGL_PLATFORM"]) == ("osmesa", "osmesa")
    assert environ["PYTHONFAULTHANDLER"] == "1"
    assert [environ[name] for name in _THREADS] == ["1"] * len(_THREADS)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "_vendor_file", lambda: None)
    mine = {"OMP_NUM_THREADS": "4", "PYTHONFAULTHANDLER": "0", "MUJOCO_EGL_DEVICE_ID": "3", "CUDA_VISIBLE_DEVICES": "1"}
    environ = dict(mine)
    gl.prepare("egl", environ)
    process_env.prepare(joins_a_cluster=False, environ=environ)
    assert {name: environ[name] for name in mine} == mine


@pytest.mark.parametrize(
    ("environ", "renderer"),
    [
        ({}, "egl"),
        ({"MUJOCO_GL": "osmesa"}, "osmesa"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, "osmesa"),
        ({"MUJOCO_GL": "EGL", "PYOPENGL_PLATFORM": "osmesa"}, "egl"),
        ({"MUJOCO_GL": "glfw"}, "egl"),
    ],
)
def test_auto_heeds_the_renderer_that_the_user_exported(
    environ: dict[str, str], renderer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gl, "_has_nvidia_egl", lambda: True)
    assert gl.resolve("auto", environ) == renderer
    assert gl.resolve("osmesa", environ) == "osmesa"  # the configuration is the user's, too, and nearer


def test_the_processes_of_a_local_ray_inherit_the_defaults() -> None:
    environ: dict[str, str] = {}
    process_env.prepare(joins_a_cluster=False, environ=environ)
    assert environ.items() >= {"PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}.items()


def test_a_clusters_workers_get_the_defaults_or_what_the_user_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    passed = setup._join_options("auto")["runtime_env"]["env_vars"]
    assert passed["OMP_NUM_THREADS"] == "4"
    assert passed["LP_NUM_THREADS"] == "1"
    assert passed["MUJOCO_GL"] == "osmesa"


@pytest.mark.parametrize(("mine", "found"), [(None, "expandable_segments:True"), ("backend:native", "backend:native")])
def test_the_policy_actor_lets_gpu_memory_grow(mine: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def build(config: Config) -> SimpleNamespace:
        seen.append(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))  # before torch is imported
        raise BadInputError("enough")

    monkeypatch.setattr(actors, "build_policy", build)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", mine or "")
    if mine is None:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    shell = actors.PolicyActorImpl(0, actors.RunContext("run", Config(), b"", spec=policy_spec(Config())))
    assert _failure_of(shell) == "enough"
    assert seen == [found]


def _failure_of(shell: actors.PolicyActorImpl) -> str:
    """Return what loading raised in its own thread."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            shell.health()
        except BadInputError as error:
            return str(error)
        time.sleep(0.01)
    raise TimeoutError("the policy is still loading")


def test_a_local_ray_that_does_not_come_up_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", slow)
    with pytest.raises(BadInputError, match=r"ray\.address none: .*timed out during startup\.\)$"):
        setup.start_ray(Config(task_suite="fake"))


def test_a_cluster_that_does_not_listen_is_reported_at_once() -> None:
    config = Config.model_validate({"task_suite": "fake", "policy": "noop", "ray": {"address": "127.0.0.1:1"}})
    with pytest.raises(BadInputError, match="cannot start or join Ray"):
        setup.start_ray(config)
