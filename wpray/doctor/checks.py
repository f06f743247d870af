"""Table of the checks, ordered so that a cause comes before its effects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from wpray.benchmarks.base import BenchmarkCheck, RunRequest
from wpray.checks import CheckResult
from wpray.config import Config
from wpray.doctor import policies, resources, simulator, software
from wpray.errors import BadInputError
from wpray.policies.base import PolicyCheck

# An empty list: the check does not apply to this configuration.
Check = Callable[[Config], list[CheckResult]]

# Checks that take less than a second together (a learned policy's import torch, as its run does); `launch` runs them.
QUICK: tuple[tuple[str, Check], ...] = (
    ("Python", software.check_python),
    ("packages", software.check_packages),
    ("origins", software.check_origins),
    ("OpenGL", software.check_opengl),
    ("tracker", software.check_the_tracker),
    ("cores", resources.check_cores),
    ("memory", resources.check_memory),
    ("output", resources.check_output),
    ("disk", resources.check_disk),
)
_THOROUGH: tuple[tuple[str, Check], ...] = (
    ("files of the nodes", policies.check_nodes_have_files),
    ("rendering", simulator.check_rendering),
)
_SLOW: tuple[tuple[str, Check], ...] = (
    ("policy", policies.check_policy),
    ("environments", policies.check_environments),
)
_TRIALS: tuple[str, Check] = ("trials", simulator.check_trials)


def quick(config: Config) -> Iterator[CheckResult]:
    """Yield the results of the checks that run no simulator and start no process."""
    for name, check in _quick(config):
        yield from carry_out(name, check, config)


def everything(config: Config, *, deep: bool) -> Iterator[CheckResult]:
    """Yield the results of all checks as they finish; `deep` adds whole trials."""
    from wpray.doctor import cluster

    parts = (*_of_policy(config, quick=False), *_THOROUGH, *_of_benchmark(config, quick=False), *_SLOW)
    needs = _needs(config.load_benchmark().checks(), policies.own_checks(config))
    failed: list[str] = []
    for name, check in (*_quick(config), *parts, ("Ray", cluster.check_ray), *((_TRIALS,) if deep else ())):
        first = next((other for other in failed if other in needs.get(name, ())), None)
        if first is not None:
            yield CheckResult(name, "warn", f"not checked: it needs what {first} lacks")
            continue
        for result in carry_out(name, check, config):
            if result.status == "fail":
                failed.append(result.name)
            yield result


def benchmark_checks(config: Config, *, quick: bool) -> frozenset[str]:
    """Return the names of the benchmark's own checks, the quick ones or the others."""
    return frozenset(name for name, _ in _of_benchmark(config, quick=quick))


def policy_files(config: Config) -> Iterator[CheckResult]:
    """Yield the results of the policy's own quick checks, which are of its files."""
    for name, check in _of_policy(config, quick=True):
        yield from carry_out(name, check, config)


def carry_out(name: str, check: Check, config: Config) -> list[CheckResult]:
    """Return the check's results; what it raises because of the user's files or machine is a failure."""
    try:
        return check(config)
    except BadInputError as error:
        return [CheckResult.of_error(name, error)]
    except OSError as error:
        return [CheckResult(name, "fail", f"{type(error).__name__}: {error}")]


def request_of(config: Config) -> RunRequest:
    """Return the settings of `config` that the checks of its benchmark read."""
    trials, own = config.num_trials_per_task, config.init_states_file
    return RunRequest(config.suites, config.task_ids, trials, own, config.max_steps_of, config.instruction_of)


def _quick(config: Config) -> tuple[tuple[str, Check], ...]:
    return (*QUICK, *_of_policy(config, quick=True), *_of_benchmark(config, quick=True))


def _of_policy(config: Config, *, quick: bool) -> list[tuple[str, Check]]:
    """Return the policy's own checks that this machine can make: a run that joins a cluster has its files there."""
    here = config.ray.address is None
    return [
        (own.name, _ready(own)) for own in policies.own_checks(config) if own.quick == quick and (here or not own.local)
    ]


def _ready(own: PolicyCheck) -> Check:
    return lambda config: policies.run_check(config, own)


def _of_benchmark(config: Config, *, quick: bool) -> list[tuple[str, Check]]:
    return [(own.name, _bound(own)) for own in config.load_benchmark().checks() if own.quick == quick]


def _bound(own: BenchmarkCheck) -> Check:
    return lambda config: own.check(request_of(config))


def _needs(of_benchmark: Iterable[BenchmarkCheck], of_policy: Iterable[PolicyCheck]) -> Mapping[str, Collection[str]]:
    """Return by check the others without which it would fail for the same reason.

    The policy needs its suite and what its own checks find; whole trials need what the benchmark's own checks need.
    """
    own = {check.name: check.needs for check in of_benchmark} | {check.name: check.needs for check in of_policy}
    trials = {name for check in of_benchmark for name in check.needs}
    return {**own, "policy": {"suite", *(check.name for check in of_policy)}, "trials": trials}
