"""Control steps of LIBERO with the solver's repeated calls answered from memory, against the same steps without.

Every process makes both in turn, with the same actions, and compares all states to the bit. The least gain is 1.05.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
    without, with_, same = zip(*found, strict=True)
    row: dict[str, Any] = {
        "suite": suite,
        "processes": count,
        "without_cpu_ms": round(statistics.median(without), 3),
        "with_cpu_ms": round(statistics.median(with_), 3),
        "gain": round(statistics.median(without) / statistics.median(with_), 3),
        "limit": _LEAST_GAIN,
        "same_bits": all(same),
    }
    print(json.dumps(row), flush=True)
    return row


def _steps(suite: str, count: int, repeats: int) -> tuple[float, float, bool]:
    """Return the medians of a step's CPU milliseconds without and with, and whether all states had the same bits."""
    os.nice(19)
    env, task = LiberoEnvironment(), list_tasks(suite)[_TASKS[suite]]
    env.load(task)
    env.reset(Trial(task, 0, 0))
    env.step(np.zeros(7))  # compiles
    actions = np.clip(np.cumsum(np.random.default_rng(0).uniform(-0.3, 0.3, (count, 7)), axis=0), -1, 1)
    times: dict[bool, list[float]] = {False: [], True: []}
    seen = set()
    for number in range(2 * repeats):
        with _usually(number % 2 == 0):
            env.reset(Trial(task, 0, 0))
            state, began = hashlib.sha256(), time.process_time()
            for action in actions:
                env.step(action)
                state.update(env._loaded().data.qvel.tobytes())
            times[number % 2 == 1].append(1000 * (time.process_time() - began) / count)
        seen.add(state.hexdigest())
    env.close()
    return statistics.median(times[False]), statistics.median(times[True]), len(seen) == 1


@contextmanager
def _usually(solves_as_usual: bool) -> Iterator[None]:
    """Let MuJoCo compute everything again, or not."""
    if not solves_as_usual:
        yield
        return
    with mock.patch.object(solver, "usable", lambda: False):
        yield
