"""Benchmarks by name and by suite: built in, installed with an entry point, or given by their import path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from wpray.benchmarks.base import Benchmark, InstructionSource, ResetProtocol
from wpray.benchmarks.names import is_or_varies, normalized
from wpray.errors import BadInputError
from wpray.registry import Registry

if TYPE_CHECKING:
    from wpray.benchmarks.base import Environment
    from wpray.types import Task

BENCHMARKS = Registry(
    "benchmark",
    "wpray.benchmarks",
    {
        "libero": "wpray.benchmarks.libero.benchmark:LiberoBenchmark",
        "libero_plus": "wpray.benchmarks.libero_plus.benchmark:LiberoPlusBenchmark",
        "fake": "wpray.benchmarks.fake.benchmark:FakeBenchmark",
    },
)
DEFAULT_SUITE = "libero_object"
STAND_IN_SUITE = "fake"  # for tests, because its episodes take milliseconds
_REQUIRED = ("tasks", "make_environment", "canonical", "observation_spec", "decisive_packages")


def benchmark_name(suite: str, setting: str = "auto") -> str:
    """Return the name of the benchmark that has `suite`, as the setting `benchmark` says.

    `auto`: the one whose name is the first words of the suite, or of a group before its colon (the longest such name),
    else the first built-in one.
    """
    if setting != "auto":
        return setting
    names, first = installed(), normalized(suite).partition(":")[0]
    fitting = [name for name in names if is_or_varies(first, name)]
    return max(fitting, key=len, default=names[0])


@cache
def installed() -> tuple[str, ...]:
    """Return the names of all benchmarks; reading what is installed takes 10 ms."""
    return BENCHMARKS.names()


def benchmark_of(suite: str, setting: str = "auto") -> Benchmark:
    """Return the benchmark that has `suite`. Raises BadInputError for one that is unknown or cannot be loaded."""
    return load_benchmark(benchmark_name(suite, setting))


@cache
def load_benchmark(name: str) -> Benchmark:
    """Return the benchmark that a name or an import path means, as `benchmark_of`."""
    part: Any = BENCHMARKS.load(name)
    made = BENCHMARKS.call(name, "making the benchmark", part) if callable(part) else part
    lacking = [method for method in _REQUIRED if not callable(getattr(made, method, None))]
    if lacking:
        remedy = "give a class that inherits from wpray.benchmarks.base.Benchmark"
        raise BadInputError(f"benchmark: {name} is no benchmark (it has no {', '.join(lacking)}); {remedy}")
    return cast(Benchmark, made)


def canonical_suite(suite: str, setting: str = "auto") -> str:
    """Return the suite's name in results: 'LIBERO Long' -> 'libero_10'."""
    return benchmark_of(suite, setting).canonical(normalized(suite))


def expanded_suites(names: Sequence[str], setting: str = "auto") -> list[str]:
    """Return canonical names, each once, with the suites of a group such as libero_all in its place."""
    return benchmark_of(names[0], setting).expanded(names) if names else []


def group_name(suites: Sequence[str], setting: str = "auto") -> str:
    """Return one name for several suites: their group's, or all names joined."""
    return benchmark_of(suites[0], setting).group_name(suites)


def list_tasks(
    suite: str, max_steps: int | None = None, instruction: InstructionSource | None = None, benchmark: str = "auto"
) -> tuple[Task, ...]:
    """Return the tasks of `suite`, with instructions from `instruction` (None: as `env.instruction` auto decides).

    Raises BadInputError for a suite that does not exist or lacks what is asked for.
    """
    found = benchmark_of(suite, benchmark)
    source = found.instruction_source(suite, instruction or "auto")
    return found.tasks(suite, max_steps, source)


def make_environment(suite: str, protocol: ResetProtocol, benchmark: str = "auto") -> Environment:
    """Return an environment for the tasks of `suite`. Only this imports a simulator."""
    return benchmark_of(suite, benchmark).make_environment(suite, protocol)
