"""Table of the checks, ordered so that a cause comes before its effects."""

from __future__ import annotations

from collections.abc import Iterator

from wpray.config import Config
from wpray.doctor import models, resources, simulator, software
from wpray.doctor.result import Check, Result, carry_out

# Checks that take less than a second together (a learned policy's import torch, as its run does); `launch` runs them.
QUICK: tuple[tuple[str, Check], ...] = (
    ("Python", software.check_python),
    ("packages", software.check_packages),
    ("LIBERO", software.check_libero),
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
    ("LIBERO files", software.check_libero_files),
    ("rendering", simulator.check_rendering),
    ("LIBERO import", simulator.check_libero_import),
    ("suite", simulator.check_suite),
    ("policy", models.check_policy),
    ("MuJoCo", simulator.check_mujoco),
)
# Checks by those that they need: without these, they would fail for the same reason.
_NEEDS = {
    "models": {"statistics"},  # because the layout depends on the width of the statistics
    "tokenizer": {"statistics", "models"},
    "GPU memory": {"statistics", "models"},
    "LIBERO files": {"LIBERO"},
    "LIBERO import": {"LIBERO", "OpenGL", "rendering"},
    "suite": {"LIBERO", "OpenGL", "rendering"},
    "policy": {"suite", "models", "statistics", "tokenizer"},
    "MuJoCo": {"LIBERO", "OpenGL", "rendering", "LIBERO import"},
    "trials": {"LIBERO", "OpenGL", "rendering", "LIBERO import"},
}


def quick(config: Config) -> Iterator[Result]:
    """Yield the results of the checks that run no simulator and start no process."""
    for name, check in QUICK:
        yield from carry_out(name, check, config)


def everything(config: Config, *, deep: bool) -> Iterator[Result]:
    """Yield the results of all checks as they finish; `deep` adds whole trials."""
    from wpray.doctor import cluster

    last: tuple[tuple[str, Check], ...] = (("Ray", cluster.check_ray),)
    if deep:
        last += (("trials", simulator.check_trials),)
    failed: list[str] = []
    for name, check in (*QUICK, *_THOROUGH, *last):
        first = next((other for other in failed if other in _NEEDS.get(name, ())), None)
        if first is not None:
            yield Result(name, "warn", f"not checked: it needs what {first} lacks")
            continue
        for result in carry_out(name, check, config):
            if result.status == "fail":
                failed.append(result.name)
            yield result
