"""Where pictures are drawn: on a cluster beside the policy's GPUs, and as `env.render` says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.drawing import drawing_place
from wpray.policies.environments import Host
from wpray.provenance.settings import outcome_fields
from wpray.system import gl

GPU = PolicySpec("vla", images=True, privileged=False, num_gpus=1, max_batch_size=32)
CPU, BLIND = replace(GPU, num_gpus=0), replace(GPU, images=False)


@pytest.fixture(autouse=True)
def egl_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine be one with a GPU driver, and LIBERO one that others can draw."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(gl, "_has_nvidia_egl", lambda: True)
    monkeypatch.setattr(type(Config().load_benchmark()), "draws_remotely", True)


def _config(suite: str = "libero_object", cluster: bool = False, **env: str) -> Config:
    return Config.model_validate({"task_suite": suite, "env": env, "ray": {"address": "auto"} if cluster else {}})


@pytest.mark.parametrize(
    ("config", "spec", "gpus", "remote", "because"),
    [
        (_config(), GPU, 1, False, "as fast as"),
        (_config(cluster=True), GPU, 1, True, "nodes without a GPU"),
        (_config(cluster=True), GPU, 0, False, "no policy actor has a GPU"),
        (_config(cluster=True), CPU, 1, False, "no policy actor has a GPU"),
        (_config(cluster=True, renderer="osmesa"), GPU, 1, False, "OSMesa"),
        (_config("fake"), GPU, 1, False, "no OpenGL"),
        (_config(), BLIND, 1, False, "sees no pictures"),
        (_config(render="local"), GPU, 1, False, "env.render is local"),
        (_config("fake", render="remote"), CPU, 0, True, "env.render is remote"),
        (_config("fake", render="remote"), BLIND, 0, False, "sees no pictures"),
    ],
)
def test_the_place_and_why(config: Config, spec: PolicySpec, gpus: int, remote: bool, because: str) -> None:
    place = drawing_place(config, spec, gpus)
    assert place.remote is remote and because in str(place)


def test_a_machine_without_egl_draws_on_its_cores_and_a_clusters_nodes_are_taken_to_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gl, "_has_nvidia_egl", lambda: False)
    cluster = _config(cluster=True)
    assert not drawing_place(_config(), GPU, 1).remote
    assert drawing_place(cluster, GPU, 1).remote
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # travels to the nodes
    assert not drawing_place(cluster, GPU, 1).remote


def test_a_benchmark_that_others_cannot_draw_is_refused_with_the_remedy() -> None:
    named: dict[str, Any] = {"task_suite": "two_arms", "benchmark": "tests.benchmarks.two_arms:TwoArms"}
    assert not drawing_place(Config.model_validate(named), GPU, 1).remote
    with pytest.raises(ValueError, match=r"env\.render: remote: the benchmark .* leave env.render out"):
        Config.model_validate({**named, "env": {"render": "remote"}})


def test_gpu_memory_limits_environments_only_where_they_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpray.policies.environments.num_gpus", lambda: 1)
    monkeypatch.setattr("wpray.policies.environments.free_gpu_memory", lambda: {"GPU 0": 7.0})
    assert Host.here(_config(render="remote"), GPU).gpu_memory is None
    assert Host.here(_config(), GPU).gpu_memory == 7.0


def test_no_outcome_depends_on_the_place() -> None:
    here = _config("fake", render="remote", render_actors="2")
    assert outcome_fields(here) == outcome_fields(_config("fake"))
