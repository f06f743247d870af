"""Checks of the machine that starts a run, before anything else starts."""

from __future__ import annotations

from typing import Any

from wpray.config import Config
from wpray.doctor.checks import benchmark_checks, quick
from wpray.errors import BadInputError
from wpray.system import gl

# Where a run joins a cluster, this machine may lack these and what the benchmark's own checks look for.
_OF_THE_NODES = frozenset({"OpenGL", "packages"})
# The estimate of disk space is high and counts episodes that a resumed run has written, so it only warns.
_PAUSES = frozenset({"disk"})


def check_machine(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Run the doctor's quick checks; return facts for run.json, and warnings, a line each.

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
