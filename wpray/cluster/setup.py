"""Start or join Ray, and size a run to what the cluster has."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from wpray.benchmarks.base import InstructionSource
from wpray.benchmarks.factory import list_tasks
from wpray.cluster.gather import cause_of
from wpray.cluster.local_ray import without_unused_processes
from wpray.cluster.probe import check_answers, host_and_port
from wpray.cluster.process_env import WORKER_DEFAULTS, passed_on
from wpray.cluster.ray_folder import short_enough
from wpray.config import Config
from wpray.errors import BadInputError, wrapping_errors
from wpray.system.hardware import cores
from wpray.types import Task

_LOG = logging.getLogger(__name__)
_OBJECT_STORE = 256 * 2**20  # bytes; results pass through it one at a time
_PLENTY = 10_000.0  # of each custom resource on a single machine, because it counts as every kind of node
_PACKAGE = Path(__file__).parents[1]


def start_ray(config: Config, folder: str | None = None, environments: int | None = None) -> None:
    """Join the cluster at ray.address, or start a local Ray: loopback only, no dashboard, no log output.

    `folder`: where a local Ray keeps its files; None is Ray's own choice. `environments`: as many as a local Ray gets
    room for if `auto` is configured; None: one a core. Raises BadInputError if the cluster cannot be reached.
    """
    warnings.filterwarnings("ignore", module="ray")
    address, on_sigterm = config.ray.address, signal.getsignal(signal.SIGTERM)
    options = _join_options(address) if address else {**_local_options(config, environments), "_temp_dir": folder}

    def one_line(error: Exception) -> BadInputError:
        named = " (RAY_ADDRESS)" if address == "auto" and os.environ.get("RAY_ADDRESS") else ""
        return BadInputError(f"ray.address {address or 'none'}{named}: cannot start or join Ray ({_reason(error)})")

    try:
        with wrapping_errors(one_line):  # Ray raises a plain Exception for a node that does not start in time
            if address:
                _check_is_there(address)
            with contextlib.nullcontext() if address else without_unused_processes():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would end a run without its summary


def ray_is_running() -> bool:
    """Return whether this process has started or joined Ray."""
    return bool(ray.is_initialized())


@contextlib.contextmanager
def running_ray(config: Config, environments: int | None = None) -> Iterator[None]:
    """Start or join Ray as `start_ray` does, and leave it at the end."""
    with contextlib.nullcontext() if config.ray.address else short_enough() as folder:
        start_ray(config, folder, environments)
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(
                signal.SIGTERM, signal.getsignal(signal.SIGTERM)
            )  # Ray replaces the handler without Python's knowledge


def num_env_actors(config: Config, num_trials: int) -> int:
    """Return the number of environments at once: as configured, else what the nodes hold; at most one for each trial.

    A cluster may grow to the configured number; one machine does not. Raises BadInputError if none fits.
    """
    wanted, fitting = config.num_env_actors, env_actors_that_fit(config)
    if wanted != "auto" and config.ray.address is not None:
        return min(wanted, num_trials)
    if fitting == 0:
        raise _nothing_fits(config)
    return min(fitting if wanted == "auto" else wanted, fitting, num_trials)


def num_renderers(config: Config, num_jobs: int) -> int:
    """Return the number of actors at once that only compute: as `num_env_actors`, but `auto` is one a core here."""
    fitting = num_env_actors(config, num_jobs)
    if config.ray.address is not None or config.num_env_actors != "auto" or len(_nodes()) > 1:
        return fitting
    return min(fitting, max(1, int(cores() / config.ray.env_cpus)))


def env_actors_that_fit(config: Config) -> int:
    """Return how many env actors the present nodes can hold."""
    return sum(_fitting(node, _needs(config)) for node in _nodes())


def env_actors_in_memory(config: Config) -> int:
    """Return how many env actors the present nodes can hold if those reserve no CPUs."""
    needs = {name: share for name, share in _needs(config).items() if name != "CPU"}
    return sum(_fitting(node, needs) for node in _nodes())


def gpu_places() -> list[str]:
    """Return Ray's ids of the nodes with GPUs, each as often as it has one, in turn."""
    counts = {str(node["NodeID"]): int(node["Resources"].get("GPU", 0)) for node in alive_nodes()}
    return [node for turn in range(max(counts.values(), default=0)) for node in counts if counts[node] > turn]


def policy_actors(config: Config, num_gpus: float) -> tuple[int, float]:
    """Return (replicas, GPUs of each): as configured, else one replica, or as many as the nodes' GPUs hold.

    A single machine without a GPU runs the policy on its CPU. Raises BadInputError if a cluster has no GPU for it.
    """
    asked = config.ray.num_policy_actors
    num_gpus = config.ray.policy_resources.get("GPU", num_gpus)
    fitting = sum(_fitting(node, {"GPU": num_gpus, **config.ray.policy_resources}) for node in _nodes() if num_gpus)
    if num_gpus and fitting == 0 and config.ray.address is None:
        _LOG.warning("no GPU here: policy %s computes on the CPU, slowly", config.policy)
        num_gpus = 0
    if asked != "auto":
        return asked, num_gpus
    if num_gpus and fitting == 0:
        remedy = "join another cluster (ray.address), or (one that grows) give ray.num_policy_actors"
        raise BadInputError(f"policy {config.policy} needs a GPU and no node has one free; {remedy}")
    if num_gpus and "GPU" in config.ray.env_resources:
        raise BadInputError("ray.env_resources: GPU: the policy takes every GPU; give ray.num_policy_actors")
    return max(1, fitting), num_gpus


def demands(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of an actor that demand the configured resources; GPUs have an option of their own."""
    custom = {name: share for name, share in resources.items() if name != "GPU"}
    return {"resources": custom, "num_gpus": resources.get("GPU", 0)}


def cluster_tasks(config: Config) -> tuple[Task, ...]:
    """Return the tasks of every suite.

    A worker lists them if the run joins a cluster, because this machine may have no simulator. Raises BadInputError for
    a suite that does not exist, or if no worker can list its tasks.
    """
    if config.ray.address is None:
        return tuple(task for asked in _asked(config) for task in list_tasks(*asked))
    try:
        tasks: tuple[Task, ...] = ray.get(_list_tasks.remote(_asked(config)))
        return tasks
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, BadInputError):
            raise cause from error
        raise BadInputError(f"ray.address: no node can list the suite's tasks ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return one line; for a mismatch of Ray's or Python's versions all of the several lines that Ray gives."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Version mismatch"):
        return " ".join(text.split()) + "; use the cluster's versions of Python and Ray here"
    return text.splitlines()[0]


def _check_is_there(address: str) -> None:
    """Raise ConnectionError unless a cluster answers where Ray would look; Ray itself would try for minutes."""
    found = host_and_port(_where(address))
    if found is not None:
        check_answers(*found)


def _where(address: str) -> str:
    """Return the address that Ray makes of `address`: for auto the one in RAY_ADDRESS, else the local cluster's."""
    named = os.environ.get("RAY_ADDRESS") if address == "auto" else None
    if address != "auto" or named:
        return named or address
    logging.getLogger("ray").setLevel(logging.ERROR)  # as ray.init does, because Ray warns of several clusters here
    services.find_gcs_addresses.cache_clear()  # type: ignore[attr-defined]
    try:
        return services.canonicalize_bootstrap_address(address) or address
    except ConnectionError as error:
        remedy = "start one with `ray start --head`, or set RAY_ADDRESS or ray.address to HOST:PORT"
        raise ConnectionError(f"no Ray runs on this machine; {remedy}") from error


def _join_options(address: str) -> dict[str, Any]:
    """Return options that give the nodes this package as it is here, and the allow-listed variables."""
    return {
        "address": address,
        "runtime_env": {"py_modules": [str(_PACKAGE)], "env_vars": {**WORKER_DEFAULTS, **passed_on()}},
    }


def _local_options(config: Config, environments: int | None) -> dict[str, Any]:
    """Return options of a local Ray; workers inherit this environment, because a runtime_env costs a second each."""
    wanted = environments or 0 if config.num_env_actors == "auto" else config.num_env_actors
    asked = wanted * config.ray.env_cpus
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": max(cores(), int(asked + 0.999)),
        "object_store_memory": _OBJECT_STORE,
        "resources": dict.fromkeys({*config.ray.policy_resources, *config.ray.env_resources} - {"GPU"}, _PLENTY),
    }


def _needs(config: Config) -> dict[str, float]:
    return {"CPU": config.ray.env_cpus, "memory": config.env_memory, **config.ray.env_resources}


def _nodes() -> Sequence[Mapping[str, float]]:
    return [node["Resources"] for node in alive_nodes()]


def alive_nodes() -> list[dict[str, Any]]:
    """Return what Ray says of the nodes that are there."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _fitting(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return min(int(node.get(name, 0) / share) for name, share in needs.items() if share > 0)


def _nothing_fits(config: Config) -> BadInputError:
    needs = f"{config.ray.env_cpus:g} CPU and {config.env_memory / 2**30:.1f} GiB of memory"
    custom = "".join(f", {share:g} {name}" for name, share in config.ray.env_resources.items())
    remedy = "lower env.memory_gb or ray.env_cpus, or (a cluster that grows) give ray.num_env_actors"
    return BadInputError(f"no node has what one env actor needs ({needs}{custom} free); {remedy}")


def _asked(config: Config) -> list[tuple[str, int | None, InstructionSource, str]]:
    return [
        (suite, config.max_steps_of(suite), config.instruction_of(suite), config.benchmark) for suite in config.suites
    ]


@ray.remote(num_cpus=0)
def _list_tasks(asked: list[tuple[str, int | None, InstructionSource, str]]) -> tuple[Task, ...]:
    return tuple(task for suite in asked for task in list_tasks(*suite))
