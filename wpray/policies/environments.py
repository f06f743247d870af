"""Number of environments for `ray.num_env_actors: auto` on one machine: more than its cores where they wait."""

from __future__ import annotations

from dataclasses import dataclass

from wpray.config import Config
from wpray.config.groups import RayConfig
from wpray.policies.base import PolicySpec
from wpray.policies.drawing import drawing_place, policy_gpus
from wpray.system.gpus import free_gpu_memory, gpu_model, num_gpus
from wpray.system.hardware import cores, free_memory

# Measured on 16 cores with one GPU (wpray/bench/README.md, End to end): 51 to 57 environments bring up to a tenth more
# than 44, which bring a quarter more than 24. With a policy that answers at once, 44 bring no more than 28.
ENVIRONMENTS_A_CORE = 56 / 16
LEAST_A_CORE = 28 / 16  # as fast, with a policy that answers at once
_BATCHES = 2  # of environments that a policy can use at once: one is computed while the next gathers
_GROWTH = 2  # times the number, at most, that a run may grow to
_GIB = 2**30
_DRAWN = 0.5 * _GIB  # of GPU memory for an environment that renders there (wpray/bench/README.md)
_COMPUTED = 40 * _GIB  # of GPU memory that is left to a policy actor: twice the most that was measured


@dataclass(frozen=True, slots=True)
class Host:
    """Resources of one machine that environments share with the policy."""

    cores: int
    memory: int | None = None  # bytes; None: the system hides them
    gpus: int = 0
    gpu_memory: float | None = None  # free bytes of the fullest GPU; None: environments do not draw on one
    gpu_model: str = ""  # such as NVIDIA H200; empty: unknown, or there is none

    @classmethod
    def here(cls, config: Config, spec: PolicySpec) -> Host:
        """Return this machine's."""
        gpus = num_gpus()
        draws = config.load_benchmark().uses_opengl and config.env.renderer != "osmesa"
        draws = draws and not drawing_place(config, spec, gpus).remote
        asked = gpus > 0 and draws and _waits(config, spec, gpus)
        free = min(free_gpu_memory().values(), default=0) if asked else None
        return cls(cores(), free_memory(), gpus, free, gpu_model() if gpus else "")


@dataclass(frozen=True, slots=True)
class Suited:
    """Number of environments that suits a policy on a machine, and what decides it."""

    number: int
    cores: int
    because: str
    most: int = 0  # a limit for a run whose environments turn out to wait
    places: int = 0  # requests that the policy can answer at once

    def __str__(self) -> str:
        """Return the choice in words."""
        return f"{self.number} on {self.cores} cores, because {self.because}"


def suited(config: Config, spec: PolicySpec, host: Host) -> Suited:
    """Return the number of environments that `auto` takes on `host`, whatever number is configured.

    One a core, unless environments wait for a GPU's or a server's answers while others step. `ray.env_cpus` other than
    its default decides by itself. Memory always limits the number.
    """
    bounds = [_by_cores(config, spec, host)]
    if host.memory is not None:
        bounds.append((int(host.memory / config.env_memory), "memory holds no more"))
    number, because = min(bounds, key=lambda bound: bound[0])
    places = _places(config, spec, host)
    return Suited(number, host.cores, because, max(number, _most(config, spec, host, number)), places)


def _most(config: Config, spec: PolicySpec, host: Host, number: int) -> int:
    """Return the number of environments that a run on `host` may grow to; memory that is not known allows none more."""
    reserves = config.ray.env_cpus != RayConfig.model_fields["env_cpus"].default
    unknown = host.memory is None or (host.gpus > 0 and not _waits(config, spec, host.gpus))
    if reserves or unknown:
        return number
    limits = [number for number, _ in _of_those_that_wait(config, spec, host)[1:]]  # all but the cores
    return min(_GROWTH * number, int((host.memory or 0) / config.env_memory), *limits)


def _places(config: Config, spec: PolicySpec, host: Host) -> int:
    return spec.servers or spec.max_batch_size * replicas(config, spec, host.gpus)


def replicas(config: Config, spec: PolicySpec, gpus: int) -> int:
    """Return the number of policy actors of a run on a machine with `gpus`."""
    asked = config.ray.num_policy_actors
    return asked if asked != "auto" else max(1, gpus) if policy_gpus(config, spec) else 1


def _by_cores(config: Config, spec: PolicySpec, host: Host) -> tuple[int, str]:
    reserved = config.ray.env_cpus
    if reserved != RayConfig.model_fields["env_cpus"].default:
        return int(host.cores / reserved), f"ray.env_cpus reserves {reserved:g} for each"
    if not _waits(config, spec, host.gpus):
        return host.cores, f"policy {spec.name} computes on the cores, too"
    most, because = min(_of_those_that_wait(config, spec, host), key=lambda bound: bound[0])
    return max(host.cores, most), because


def _waits(config: Config, spec: PolicySpec, gpus: int) -> bool:
    """Return True if answers are computed elsewhere than on the cores: by servers, or by a GPU that is there."""
    return spec.remote or (gpus > 0 and policy_gpus(config, spec) > 0)


def _of_those_that_wait(config: Config, spec: PolicySpec, host: Host) -> list[tuple[int, str]]:
    """Return what limits the number of environments that wait for answers, each with its reason."""
    actors, answered = replicas(config, spec, host.gpus), _places(config, spec, host)
    bounds = [
        (int(ENVIRONMENTS_A_CORE * host.cores), f"they wait for the answers of policy {spec.name}"),
        (_BATCHES * answered, f"policy {spec.name} answers at most {answered} at once"),
    ]
    if host.gpu_memory is not None:
        free = host.gpu_memory if spec.remote else host.gpu_memory * min(actors, host.gpus) - _COMPUTED * actors
        bounds.append((int(max(0, free) / _DRAWN), "GPU memory holds no more"))
    return bounds
