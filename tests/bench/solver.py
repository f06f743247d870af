"""Control steps of LIBERO with MuJoCo's solver, with its repeated calls answered from memory, and without the zeros.

Every process makes all three in turn, with the same actions, and compares all states to the bit. The least gain of both
together is 1.05.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np

from wpray.benchmarks.libero import solver
from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.tasks import list_tasks
from wpray.types import Trial

_LEAST_GAIN = 1.05
_TASKS = {"libero_object": 0, "libero_spatial": 5, "libero_goal": 3, "libero_10": 0}


def main(argv: Sequence[str]) -> int:
    """Measure; print a line of JSON for each suite. Return 1 if a gain is below the limit or a bit differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench solver", description=__doc__)
    parser.add_argument("--suites", nargs="+", choices=_TASKS, default=list(_TASKS))
    parser.add_argument("--processes", type=int, default=1, help="that step at once (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of a measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each, in turn (%(default)s)")
    args = parser.parse_args(argv)
    rows = [_measure(suite, args) for suite in args.suites]
    return int(any(row["gain"] < _LEAST_GAIN or not row["same_bits"] for row in rows))


def _measure(suite: str, args: argparse.Namespace) -> dict[str, Any]:
    context, count = multiprocessing.get_context("spawn"), args.processes
    with ProcessPoolExecutor(count, context) as pool:
        found = list(pool.map(_steps, [suite] * count, [args.steps] * count, [args.repeats] * count))
    medians, same = zip(*found, strict=True)
    stock, memory, ours = (statistics.median(times) for times in zip(*medians, strict=True))
    row: dict[str, Any] = {
        "suite": suite,
        "processes": count,
        "mujoco_cpu_ms": round(stock, 3),
        "from_memory_cpu_ms": round(memory, 3),
        "and_without_zeros_cpu_ms": round(ours, 3),
        "gain_from_memory": round(stock / memory, 3),
        "gain": round(stock / ours, 3),
        "limit": _LEAST_GAIN,
        "same_bits": all(same),
    }
    print(json.dumps(row), flush=True)
    return row


def _steps(suite: str, count: int, repeats: int) -> tuple[list[float], bool]:
    """Return the medians of a step's CPU milliseconds in each way, and whether all states had the same bits."""
    os.nice(19)
    env, task = LiberoEnvironment(), list_tasks(suite)[_TASKS[suite]]
    env.load(task)
    env.reset(Trial(task, 0, 0))
    env.step(np.zeros(7))  # compiles
    actions = np.clip(np.cumsum(np.random.default_rng(0).uniform(-0.3, 0.3, (count, 7)), axis=0), -1, 1)
    times: list[list[float]] = [[] for _ in _WAYS]
    seen = set()
    for number in range(len(_WAYS) * repeats):
        way = number % len(_WAYS)
        with _WAYS[way]():
            env.reset(Trial(task, 0, 0))
            state, began = hashlib.sha256(), time.process_time()
            for action in actions:
                env.step(action)
                state.update(env._loaded().data.qvel.tobytes())
            times[way].append(1000 * (time.process_time() - began) / count)
        seen.add(state.hexdigest())
    env.close()
    return [statistics.median(each) for each in times], len(seen) == 1


@contextmanager
def _from_memory() -> Iterator[None]:
    """Let MuJoCo compute what is new in its own way."""
    words = solver._memory.view(np.int64)
    words[solver._DENSE] = True
    yield
    words[solver._DENSE] = False


_WAYS: tuple[Callable[[], AbstractContextManager[Any]], ...] = (
    lambda: mock.patch.object(solver, "usable", lambda: False),
    _from_memory,
    nullcontext,
)
