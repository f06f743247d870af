"""`python -m wpray.bench env`: stock LIBERO against wpray's environment, on the same actions, bit by bit.

Three environments take turns, trial by trial, each in a separate process: stock with its two renders per step, stock
without rendering, and ours, which renders at decision points only. The qpos, qvel and done of every step and the
proprio and images of every decision must be equal. The limit beside the figures cannot be beaten: it is the physics
steps and the renders that the policy asks for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wpray.bench.env_subjects import SubjectKind, SubjectRecording, open_subject, run_trial
from wpray.bench.figures import write_figures
from wpray.benchmarks.libero import tasks
from wpray.cli.arguments import file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.trials import make_trials, select_tasks
from wpray.types import FloatArray, Task, Trial

_DEFAULT = ("libero_object:0", "libero_spatial:5", "libero_goal:3", "libero_10:0")
_TARGETS = {"episode": 12.0, "step": 2.5, "reset_s": 0.15}
_WAIT, _EVERY = 10, 20


@dataclass(slots=True)
class SubjectComparison:
    """Recordings of one task, and the number of values that differ."""

    stock: list[SubjectRecording] = field(default_factory=list)
    blind: list[SubjectRecording] = field(default_factory=list)
    ours: list[SubjectRecording] = field(default_factory=list)
    compared: int = 0
    images: int = 0
    mismatches: int = 0

    def compare_last(self) -> None:
        """Compare the most recent trial bit by bit."""
        stock, ours = self.stock[-1], self.ours[-1]
        for name in ("qpos", "qvel", "done"):
            self._check(getattr(stock, name), getattr(ours, name))
        for name in ("proprio", "base_image", "wrist_image"):
            self._check([getattr(o, name) for o in stock.seen], [getattr(o, name) for o in ours.seen])
        self.images += 2 * len(ours.seen)

    def _check(self, stock: Sequence[Any], ours: Sequence[Any]) -> None:
        self.compared += len(stock)
        self.mismatches += sum(not np.array_equal(a, b) for a, b in zip(stock, ours, strict=True))


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a bit differs or a target is missed, else 0."""
    parser = ArgumentParser(prog="python -m wpray.bench env", description=__doc__)
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=_suite_and_task,
        default=[_suite_and_task(name) for name in _DEFAULT],
        metavar="SUITE:TASK",
        help="tasks to run (one of each of four suites)",
    )
    parser.add_argument("--trials", type=whole(1), default=2, help="trials of each task (%(default)s)")
    parser.add_argument(
        "--steps",
        type=whole(1, 100_000),
        default=120,
        help="control steps of a trial after the wait steps (%(default)s)",
    )
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    args = parser.parse_args(argv)
    chosen = [_task(suite, number, args.trials) for suite, number in args.tasks]
    rows = {f"{task.suite}:{task.task_id}": _row(_compare(task, args.trials, args.steps)) for task in chosen}
    _print(rows)
    write_figures(args.json, rows)
    return int(any(row["mismatches"] or not row["targets_met"] for row in rows.values()))


def _suite_and_task(text: str) -> tuple[str, int]:
    suite, _, number = text.partition(":")
    if not suite or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not SUITE:TASK, such as libero_object:0")
    return suite, int(number)


def _task(suite: str, number: int, trials: int) -> Task:
    """Return the task. Raise BadInputError if there is none, or if it has fewer initial states than `trials`."""
    (task,) = select_tasks(tasks.list_tasks(suite), [number])
    make_trials([task], trials, seed=0)
    return task


def _compare(task: Task, trials: int, steps: int) -> SubjectComparison:
    decisions = frozenset(range(_WAIT - 1, _WAIT + steps, _EVERY))
    comparison = SubjectComparison()
    with ExitStack() as stack:
        kinds: tuple[SubjectKind, ...] = ("stock", "stock_blind", "ours")
        subjects = {kind: stack.enter_context(_process(kind, task.suite, task.task_id)) for kind in kinds}
        for index in range(trials):
            given = (Trial(task, index, seed=0), _actions(steps, index), decisions)
            comparison.stock.append(subjects["stock"].submit(run_trial, *given).result())
            comparison.ours.append(subjects["ours"].submit(run_trial, *given).result())
            comparison.blind.append(subjects["stock_blind"].submit(run_trial, *given).result())
            comparison.compare_last()
    return comparison


def _process(kind: SubjectKind, suite: str, task_id: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=partial(open_subject, kind, suite, task_id))


def _actions(steps: int, seed: int) -> FloatArray:
    """Return zero actions while the objects settle, then smooth motion that pushes them around."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.uniform(-0.3, 0.3, (steps, 7)), axis=0)
    return np.concatenate([np.zeros((_WAIT, 7)), np.clip(drift, -1, 1)])


def _row(c: SubjectComparison) -> dict[str, Any]:
    stock, ours = (statistics.mean(r.episode_s for r in recordings) for recordings in (c.stock, c.ours))
    stock_step, our_step = (statistics.median(s for r in rs for s in r.step_s) for rs in (c.blind, c.ours))
    reset = statistics.median(r.reset_s for r in c.ours)
    met = stock / ours >= _TARGETS["episode"] and stock_step / our_step >= _TARGETS["step"]
    return {
        "stock_episode_s": stock,
        "our_episode_s": ours,
        "floor_episode_s": statistics.mean(r.render_s + r.physics_s for r in c.ours),
        "episode_ratio": stock / ours,
        "stock_step_ms": 1000 * stock_step,
        "our_step_ms": 1000 * our_step,
        "step_ratio": stock_step / our_step,
        "stock_reset_s": statistics.median(r.reset_s for r in c.stock),
        "our_reset_s": reset,
        "compared": c.compared,
        "images": c.images,
        "mismatches": c.mismatches,
        "targets_met": met and reset < _TARGETS["reset_s"],
    }


def _print(rows: dict[str, dict[str, Any]]) -> None:
    table = Table(
        title="CPU seconds, stock / wpray (targets: 12x an episode, 2.5x a step, reset under 0.15 s)", box=None
    )
    for name in (
        "task",
        "episode",
        "ratio",
        "limit",
        "step without render",
        "ratio",
        "reset",
        "compared",
        "mismatches",
    ):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for name, r in rows.items():
        table.add_row(
            name,
            f"{r['stock_episode_s']:.2f} / {r['our_episode_s']:.2f} s",
            f"{r['episode_ratio']:.1f}x",
            f"{r['floor_episode_s']:.2f} s",
            f"{r['stock_step_ms']:.1f} / {r['our_step_ms']:.1f} ms",
            f"{r['step_ratio']:.2f}x",
            f"{r['stock_reset_s']:.2f} / {r['our_reset_s']:.3f} s",
            f"{r['compared']} ({r['images']} images)",
            str(r["mismatches"]),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
