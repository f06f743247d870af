"""Processes of a local run: env actors import nothing of the policy's and give way to it, and none is useless."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import Enum
from typing import Any

import psutil
import pytest
from pydantic import BaseModel

from wpray.cluster import local_ray, process_env
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.factory import policy_spec, with_policy_args
from wpray.policies.noop import NoopPolicy
from wpray.system.time_slices import slice_s

pytestmark = pytest.mark.ray


class Size(Enum):
    SMALL = "small"


class HeavyPolicy(NoopPolicy):
    """Stands for a policy whose module must not reach env actors; one setting has a type of its own."""

    class Settings(BaseModel):
        size: Size | None = None

    @classmethod
    def spec_of(cls, settings: Settings) -> PolicySpec:
        return PolicySpec("heavy", images=True, privileged=False, num_gpus=0, max_batch_size=1)


LEARNED = {"vlm_checkpoint": "a", "ae_checkpoint": "b", "dataset_statistics_path": "c"}
OWN = {"policy": f"{__name__}:HeavyPolicy", "policy_args": {"size": "small"}}


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    """Return a configuration whose Ray runs."""
    from wpray.cluster.setup import running_ray

    config = Config.model_validate({"task_suite": "fake", "policy": "noop"})
    process_env.prepare(joins_a_cluster=False)
    with running_ray(config):
        yield config


def _env_actor(config: Config) -> Any:
    from wpray.orchestration.actors import EnvActor, RunContext

    context = RunContext("run", config, b"", spec=policy_spec(config))
    return EnvActor.options(num_cpus=0).remote("env-0", context.for_environments(), [])


def test_an_env_actor_imports_neither_torch_nor_the_policy(config: Config) -> None:
    import ray

    configs = [with_policy_args(Config.model_validate({"task_suite": "fake", **own})) for own in (LEARNED, OWN)]
    assert configs[1].policy_args == {"size": Size.SMALL}
    for one in configs:
        actor = _env_actor(one)
        ray.get(actor.start.remote(), timeout=60)
        names = ray.get(actor.__ray_call__.remote(lambda _: set(__import__("sys").modules)), timeout=60)
        assert "wpray.orchestration.actors" in names
        assert not {"torch", "tokenizers", __name__} & names
        ray.kill(actor)


def test_a_policy_comes_before_all_environments_where_cores_are_scarce(config: Config) -> None:
    import ray

    from wpray.orchestration.actors import PolicyActor, RunContext

    policy = PolicyActor.remote(0, RunContext("run", config, b"k" * 32, spec=policy_spec(config)))
    environment = _env_actor(config)
    nice = [actor.__ray_call__.remote(lambda _: __import__("os").nice(0)) for actor in (policy, environment)]
    assert ray.get(nice, timeout=60) == [os.nice(0), 19]
    for actor in (policy, environment):
        ray.kill(actor)


@pytest.mark.skipif(slice_s() is None, reason="this system does not say how long a thread's slices are")
def test_the_thread_that_runs_episodes_takes_long_slices_and_no_other(config: Config) -> None:
    import ray

    actor = _env_actor(config)
    ray.get(actor.start.remote(), timeout=60)
    ask = actor.__ray_call__
    working = ask.options(concurrency_group="work").remote(lambda _: (slice_s(), os.nice(0)))
    assert ray.get(working, timeout=60) == (0.1, 19)
    assert ray.get(ask.remote(lambda _: slice_s()), timeout=60) == slice_s()
    ray.kill(actor)


def test_ray_starts_no_process_that_a_local_run_does_not_use(config: Config) -> None:
    started = [_command(child) for child in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in started)
    unused = ("autoscaler/_private/monitor.py", "dashboard/dashboard.py", "_private/log_monitor.py")
    assert not [command for command in started if any(name in command for name in unused)]


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return " ".join(process.cmdline())
    return ""


def test_the_methods_of_ray_that_start_those_processes_are_only_replaced_meanwhile() -> None:
    from ray._private.node import Node

    stock = [vars(Node)[name] for name in local_ray.UNUSED]  # a KeyError: this Ray starts them by another method
    with local_ray.without_unused_processes():
        assert all(vars(Node)[name] not in stock for name in local_ray.UNUSED)
    assert [vars(Node)[name] for name in local_ray.UNUSED] == stock
