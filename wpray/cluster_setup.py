"""Starts or joins Ray, and sizes a run to what the cluster has."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import ray

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.types import Task

# What workers may see of the driver's environment when it joins a cluster: nothing secret.
_PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "LP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
_WORKER_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
}
_MIN_OBJECT_STORE = 128 * 2**20


def start_ray(config: Config) -> None:
    """Joins the cluster at ray.address, or starts a local Ray: loopback only, no dashboard, quiet.

    Raises BadInputError if the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    warnings.filterwarnings("ignore", module="ray")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": False}
    address = config.ray.address
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=_MIN_OBJECT_STORE,
                **common,
            )
        else:
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BadInputError(f"ray.address {address}: cannot start or join Ray ({reason})") from error


def worker_environment() -> dict[str, str]:
    """Environment variables of every actor: one thread each, and what the user set of an allow-list."""
    return _WORKER_DEFAULTS | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def num_env_actors(config: Config, num_trials: int) -> int:
    """Environments at once: as configured, else what the cluster's CPUs and memory hold, never more than trials.

    Raises BadInputError if not even one fits.
    """
    if config.num_env_actors != "auto":
        return min(int(config.num_env_actors), num_trials)
    resources = _resources()
    by_cpu = int(resources.get("CPU", 0) / config.ray.env_cpus)
    by_memory = int(resources.get("memory", 0) / env_memory(config))
    for name, share in config.ray.env_resources.items():
        by_cpu = min(by_cpu, int(resources.get(name, 0) / share))
    if min(by_cpu, by_memory) < 1:
        lacking = "CPU" if by_cpu < 1 else f"{config.env.memory_gb} GiB of memory"
        raise BadInputError(f"no node has {lacking} for one env actor; lower ray.env_cpus or env.memory_gb")
    return min(by_cpu, by_memory, num_trials)


def num_policy_actors(config: Config, num_gpus: float) -> int:
    """Policy replicas: as configured, else one, or as many as the cluster's GPUs hold."""
    if config.ray.num_policy_actors != "auto":
        return int(config.ray.num_policy_actors)
    gpus = _resources().get("GPU", 0)
    return max(1, int(gpus / num_gpus)) if num_gpus else 1


def env_memory(config: Config) -> int:
    """Bytes reserved for an env actor."""
    return int(config.env.memory_gb * 2**30)


def cluster_tasks(suite: str, max_steps: int | None) -> tuple[Task, ...]:
    """The suite's tasks, read by a worker: this machine may have no LIBERO."""
    return ray.get(_list_tasks.remote(suite, max_steps))


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


@ray.remote(num_cpus=0)
def _list_tasks(suite: str, max_steps: int | None) -> tuple[Task, ...]:
    from wpray.envs.factory import list_tasks

    return list_tasks(suite, max_steps)
