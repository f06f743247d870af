"""Checks of the machine that starts a run, before anything else starts."""

from __future__ import annotations

from typing import Any

from wpray.benchmarks.factory import FAKE_SUITE
from wpray.config import Config
from wpray.doctor.checks import quick
from wpray.errors import BadInputError
from wpray.system import gl

_OF_THE_NODES = frozenset({"LIBERO", "OpenGL", "packages"})  # this machine may lack them when it joins a cluster
# The estimate of disk space is high and counts episodes that a resumed run has written, so it only warns.
_PAUSES = frozenset({"disk"})


def check_machine(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Run the doctor's quick checks; return facts for run.json, and warnings, a line each.

    Raises BadInputError for the first check that fails, naming the remedy.
    """
    joins, odd = config.ray.address is not None, []
    for result in quick(config):
        if joins and result.name in _OF_THE_NODES:
            continue
        if result.status == "fail" and result.name not in _PAUSES:
            raise BadInputError(result.text)
        if result.status != "pass":
            odd.append(f"{result.name}: {result.text}")
    known = joins or FAKE_SUITE in config.suites
    return {"renderer": config.env.renderer if known else gl.select_renderer(config.env.renderer)}, odd
