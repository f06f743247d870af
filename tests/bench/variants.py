"""Cost of LIBERO-plus's variants that share a compiled scene, against compiling it for each of them.

Each variant runs twice, one after the other: in a scene that is compiled for it, and in one that another variant left.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from wpray.benchmarks.factory import list_tasks
from wpray.benchmarks.libero_plus.environment import LiberoPlusEnvironment
from wpray.benchmarks.libero_plus.suites import OF_BASE_ASSETS
from wpray.types import ObservationSpec, Task, Trial

_PARTS = ("its start", "its first pictures", "its end")
_DECIDE_EVERY = 20  # control steps


def main(argv: Sequence[str]) -> int:
    """Measure; print a line a variant and the means as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench variants", description=__doc__)
    parser.add_argument("--per-category", type=int, default=2, help="variants of each category")
    parser.add_argument("--steps", type=int, default=230, help="control steps of an episode")
    args = parser.parse_args(argv)
    tasks = _of_one_scene(args.per_category)
    env = LiberoPlusEnvironment()
    _episode(env, tasks[-1], args.steps)  # what a process does once
    compiled, shared = [], []
    for index, task in enumerate(tasks):
        env.close()
        compiled.append(_episode(env, task, args.steps))
        env.load(tasks[index - 1])
        shared.append(_episode(env, task, args.steps))
        print(f"{task.name}: {compiled[-1]} s with compiling, {shared[-1]} s in a shared scene")
    for part, each, together in zip(_PARTS, np.mean(compiled, axis=0), np.mean(shared, axis=0), strict=True):
        print(json.dumps({"until": part, "compiled_s": each, "shared_s": together, "ratio": each / together}))
    return 0


def _of_one_scene(per_category: int) -> list[Task]:
    """Return variants of the first task of libero_goal."""
    listed = [list_tasks(f"libero_plus_goal_{category}") for category in OF_BASE_ASSETS]
    scene = listed[0][0].scene
    return [task for tasks in listed for task in [task for task in tasks if task.scene == scene][:per_category]]


def _episode(env: LiberoPlusEnvironment, task: Task, steps: int) -> tuple[float, ...]:
    """Return the CPU seconds of an episode from loading to each of _PARTS."""
    times, seen = [time.process_time()], ObservationSpec()
    env.load(task)
    env.reset(Trial(task, 0, 0))
    times.append(time.process_time())
    env.observe(seen)
    times.append(time.process_time())
    for step in range(steps):
        if step and step % _DECIDE_EVERY == 0:
            env.observe(seen)
        env.step(np.zeros(7))
    times.append(time.process_time())
    return tuple(round(at - times[0], 3) for at in times[1:])
