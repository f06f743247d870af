"""What a run needs of the machine that starts it, checked before anything starts."""

from __future__ import annotations

import logging
from typing import Any

from wpray.config import Config
from wpray.doctor.checks import quick
from wpray.envs import gl
from wpray.envs.factory import FAKE_SUITE
from wpray.errors import BadInputError

_LOG = logging.getLogger(__name__)
_OF_THE_NODES = frozenset({"LIBERO", "OpenGL", "packages"})  # where a run joins a cluster, this machine may lack them


def check_machine(config: Config) -> dict[str, Any]:
    """Facts for run.json, after the doctor's quick checks.

    Raises BadInputError for the first one that fails, naming the remedy; what is merely odd is logged.
    """
    joins = config.ray.address is not None
    for result in quick(config):
        if joins and result.name in _OF_THE_NODES:
            continue
        if result.status == "fail":
            raise BadInputError(result.text)
        if result.status == "warn":
            _LOG.warning("%s: %s", result.name, result.text)
    if joins or config.task_suite == FAKE_SUITE:
        return {"renderer": config.env.renderer}
    return {"renderer": gl.choose(config.env.renderer)}
