"""Table of the checks, ordered so that a cause comes before its effects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from wpray.benchmarks.base import BenchmarkCheck, RunRequest
from wpray.checks import Result
from wpray.config import Config
from wpray.doctor import models, resources, simulator, software
from wpray.errors import BadInputError

# An empty list: the check does not apply to this configuration.
Check = Callable[[Config], list[Result]]

# Checks that take less than a second together (a learned policy's import torch, as its run does); `launch` runs them.
QUICK: tuple[tuple[str, Check], ...] = (
    ("Python", software.check_python),
    ("packages", software.check_packages),
    ("origins", software.check_origins),
    ("OpenGL", software.check_opengl),
    ("cores", resources.check_cores),
    ("memory", resources.check_memory),
    ("output", resources.check_output),
    ("disk", resources.check_disk),
    ("statistics", models.check_statistics),
    ("models", models.check_models),
    ("tokenizer", models.check_tokenizer),
)
_THOROUGH: tuple[tuple[str, Check], ...] = (
    ("models", models.check_nodes_have_files),
    ("GPU memory", models.check_gpu_memory),
    ("rendering", simulator.check_rendering),
)
_SLOW: tuple[tuple[str, Check], ...] = (("policy", models.check_policy),)
_TRIALS: tuple[str, Check] = ("trials", simulator.check_trials)
# Checks by those that they need: without these, they would fail for the same reason.
_NEEDS: dict[str, Collection[str]] = {
    "models": {"statistics"},  # because the layout depends on the width of the statistics
    "tokenizer": {"statistics", "models"},
    "GPU memory": {"statistics", "models"},
    "policy": {"suite", "models", "statistics", "tokenizer"},
}


def quick(config: Config) -> Iterator[Result]:
    """Yield the results of the checks that run no simulator and start no process."""
    for name, check in (*QUICK, *_of_benchmark(config, quick=True)):
        yield from carry_out(name, check, config)


def everything(config: Config, *, deep: bool) -> Iterator[Result]:
    """Yield the results of all checks as they finish; `deep` adds whole trials."""
    from wpray.doctor import cluster

    slow = (*_THOROUGH, *_of_benchmark(config, quick=False), *_SLOW, ("Ray", cluster.check_ray))
    needs = _needs(config.load_benchmark().checks())
    failed: list[str] = []
    for name, check in (*QUICK, *_of_benchmark(config, quick=True), *slow, *((_TRIALS,) if deep else ())):
        first = next((other for other in failed if other in needs.get(name, ())), None)
        if first is not None:
            yield Result(name, "warn", f"not checked: it needs what {first} lacks")
            continue
        for result in carry_out(name, check, config):
            if result.status == "fail":
                failed.append(result.name)
            yield result


def benchmark_checks(config: Config, *, quick: bool) -> frozenset[str]:
    """Return the names of the benchmark's own checks, the quick ones or the others."""
    return frozenset(name for name, _ in _of_benchmark(config, quick=quick))


def carry_out(name: str, check: Check, config: Config) -> list[Result]:
    """Return the check's results; what it raises because of the user's files or machine is a failure."""
    try:
        return check(config)
    except BadInputError as error:
        return [Result.of_error(name, error)]
    except OSError as error:
        return [Result(name, "fail", f"{type(error).__name__}: {error}")]


def request_of(config: Config) -> RunRequest:
    """Return what a run of `config` wants of its benchmark."""
    trials, steps = config.num_trials_per_task, config.env.max_steps
    own = config.init_states_file
    return RunRequest(config.suites, config.task_ids, trials, own, steps, config.instruction_of)


def _of_benchmark(config: Config, *, quick: bool) -> list[tuple[str, Check]]:
    return [(own.name, _bound(own)) for own in config.load_benchmark().checks() if own.quick == quick]


def _bound(own: BenchmarkCheck) -> Check:
    return lambda config: own.check(request_of(config))


def _needs(own: Iterable[BenchmarkCheck]) -> Mapping[str, Collection[str]]:
    """Return by check the others that it needs; whole trials need what the benchmark's own checks need."""
    trials = {name for check in own for name in check.needs}
    return {**_NEEDS, **{check.name: check.needs for check in own}, "trials": trials}
