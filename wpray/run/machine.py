"""What a run needs of the machine that starts it, checked before anything starts."""

from __future__ import annotations

from typing import Any

from wpray.config import Config
from wpray.doctor.checks import benchmark_checks, quick
from wpray.errors import BadInputError
from wpray.system import gl

# Where a run joins a cluster, this machine may lack these and what the benchmark's own checks look for.
_OF_THE_NODES = frozenset({"OpenGL", "packages"})
# A high estimate of what all episodes need, also of those that a run to go on with has written: not worth a refusal.
_PAUSES = frozenset({"disk"})


def check_machine(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Facts for run.json and, in a line each, what is merely odd, after the doctor's quick checks.

    Raises BadInputError for the first check that fails, naming the remedy.
    """
    joins, odd = config.ray.address is not None, []
    of_the_nodes = _OF_THE_NODES | benchmark_checks(config, quick=True)
    for result in quick(config):
        if joins and result.name in of_the_nodes:
            continue
        if result.status == "fail" and result.name not in _PAUSES:
            raise BadInputError(result.text)
        if result.status != "pass":
            odd.append(f"{result.name}: {result.text}")
    known = joins or not config.load_benchmark().uses_opengl
    return {"renderer": config.env.renderer if known else gl.select_renderer(config.env.renderer)}, odd
