"""Control steps of LIBERO in many processes at once, against MuJoCo's own part of them under the same load.

Every process steps a task of libero_object without pictures, as env actors do: at niceness 19, in slices of 0.1 s and,
for comparison, in those that the system gives otherwise. The floor is what stock LIBERO makes MuJoCo compute for a
control step. The limit of the ratio is 1.35.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import mujoco
import numpy as np

from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.tasks import list_tasks
from wpray.system.time_slices import take_long_slices
from wpray.types import Trial

_LIMIT = 1.35
_SETTLE, _FLOOR_EVERY = 15, 5  # control steps
_SUBSTEPS = 25  # of a control step
_VELOCITY = int(mujoco.mjtStage.mjSTAGE_VEL)


def main(argv: Sequence[str]) -> int:
    """Measure; print a line of JSON for each load. Return 1 if a ratio is over the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench steps", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (%(default)s)")
    args = parser.parse_args(argv)
    rows = [_measure(count, args.seconds, long) for count in args.processes for long in (False, True)]
    return int(any(row["ratio"] > _LIMIT for row in rows))


def _measure(count: int, seconds: float, long_slices: bool) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count, timeout=600)
    with ProcessPoolExecutor(count, context, initializer=_share, initargs=(barrier,)) as pool:
        found = list(pool.map(_steps, range(count), [seconds] * count, [long_slices] * count))
    step, floor = (statistics.median(times) for times in list(zip(*found, strict=True))[:2])
    row = {
        "processes": count,
        "long_slices": long_slices,
        "step_cpu_ms": round(1000 * step, 2),
        "floor_cpu_ms": round(1000 * floor, 2),
        "ratio": round(step / floor, 3),
        "limit": _LIMIT,
        "steps_per_s": round(sum(steps for *_, steps in found) / seconds),  # the floor's count as steps
    }
    print(json.dumps(row), flush=True)
    return row


def _share(barrier: Any) -> None:
    """Take what makes all processes begin together."""
    global _BARRIER
    _BARRIER = barrier


def _steps(number: int, seconds: float, long_slices: bool) -> tuple[float, float, int]:
    """Return the mean CPU seconds of a step and of its floor, and how many of both were made."""
    os.nice(19)
    if long_slices:
        take_long_slices()
    env, rng = LiberoEnvironment(), np.random.default_rng(number)
    task = list_tasks("libero_object")[number % 10]
    env.load(task)
    env.reset(Trial(task, 0, 0))
    for _ in range(_SETTLE):
        env.step(np.zeros(7))
    _BARRIER.wait()
    steps: list[float] = []
    floors: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        action = rng.uniform(-1, 1, 7) * (0.4, 0.4, 0.4, 0.1, 0.1, 0.1, 1)
        steps.append(_cpu(lambda action=action: env.step(action)))  # type: ignore[misc]
        if len(steps) % _FLOOR_EVERY == 0:
            floors.append(_floor(env))
    return statistics.mean(steps[1:]), statistics.mean(floors[1:]), len(steps) + len(floors)


def _floor(env: LiberoEnvironment) -> float:
    scene = env._loaded()
    model, data = scene.model, copy.copy(scene.data)

    def compute() -> None:
        for _ in range(_SUBSTEPS):
            mujoco.mj_step1(model, data)
            mujoco.mj_forwardSkip(model, data, _VELOCITY, 1)
            mujoco.mj_fwdConstraint(model, data)
            mujoco.mj_step2(model, data)

    return _cpu(compute)


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


_BARRIER: Any = None
