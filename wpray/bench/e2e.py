"""`python -m wpray.bench e2e`: an episode's time by activity, with a policy that costs nothing.

This is a real run (Ray, environments, images sent, trajectories written) of a policy that answers at once. The limit
beside the figures is the environment itself: reset, steps, and the renders that the policy asks for.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from wpray.bench.figures import write_figures
from wpray.benchmarks.factory import DEFAULT_SUITE
from wpray.cli.arguments import file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.configuration import validate
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env
from wpray.config import Config
from wpray.errors import RunStoppedError

_TARGET_MS = 5.0  # transport and queue per request


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if transport and queue of a request exceed the target, else 0."""
    parser = ArgumentParser(prog="python -m wpray.bench e2e", description=__doc__)
    parser.add_argument("--suite", default=DEFAULT_SUITE, help="suite (%(default)s)")
    parser.add_argument("--tasks", default="0-1", help="task ids (%(default)s)")
    parser.add_argument("--trials", type=whole(1, 100_000), default=5, help="trials of each task (%(default)s)")
    parser.add_argument("--envs", default="auto", help="env actors (%(default)s)")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    args = parser.parse_args(argv)
    _config(args, tempfile.gettempdir())  # checks the configuration before anything starts
    process_env.prepare(joins_a_cluster=False)
    from wpray.run.evaluation import evaluate

    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as folder:
        if evaluate(_config(args, folder)):
            raise RunStoppedError("bench e2e measures whole runs, and this one has errors (see above)")
        figures = measure(Path(folder))
    _print(figures)
    write_figures(args.json, figures)
    return int(figures["transport_ms"] + figures["queue_ms"] > _TARGET_MS)


def measure(folder: Path) -> dict[str, Any]:
    """Compute mean seconds per episode by activity, and milliseconds per request, from a run's tables."""
    episodes = pq.read_table(folder / "episodes.parquet")
    decisions = pq.read_table(folder / "decisions.parquet")
    asked = decisions.filter(pc.greater(decisions["wait_s"], 0))  # a plan's first segment comes without a request
    count = episodes.num_rows
    seconds = {name: _sum(episodes, name) / count for name in ("reset_s", "env_s", "render_s")}
    waited, queued, computed = (_sum(asked, name) / count for name in ("wait_s", "queue_s", "compute_s"))
    waits = {"transport_s": waited - queued - computed, "queue_s": queued, "policy_s": computed}
    wall = _sum(episodes, "wall_s") / count
    parts = {**seconds, **waits, "recording_s": wall - sum(seconds.values()) - waited, "writing_s": _between(episodes)}
    requests = asked.num_rows / count
    return {
        "episodes": count,
        "requests": requests,
        "steps": _sum(episodes, "num_steps") / count,
        "parts": parts,
        "episode_s": sum(parts.values()),
        "transport_ms": 1e3 * waits["transport_s"] / requests,
        "queue_ms": 1e3 * waits["queue_s"] / requests,
    }


def _sum(table: Any, name: str) -> float:
    return float(pc.sum(table[name]).as_py())


def _between(episodes: Any) -> float:
    """Return the mean gap between episodes on the same actor, s: encoding, writing and scheduling."""
    gaps = []
    by_worker: dict[str, list[Any]] = {}
    for row in episodes.select(["worker", "started_at", "ended_at"]).to_pylist():
        by_worker.setdefault(row["worker"], []).append(row)
    for rows in by_worker.values():
        rows.sort(key=lambda row: row["started_at"])
        gaps += [(b["started_at"] - a["ended_at"]).total_seconds() for a, b in itertools.pairwise(rows)]
    return sum(gaps) / len(gaps) if gaps else 0.0


def _config(args: argparse.Namespace, folder: str) -> Config:
    return validate(
        {
            "policy": "wpray.bench.instant",
            "task_suite": args.suite,
            "tasks": args.tasks,
            "num_trials_per_task": args.trials,
            "output_dir": folder,
            "video": {"mode": "none"},
            "ray": {"num_env_actors": args.envs},
        }
    )


def _print(figures: dict[str, Any]) -> None:
    about = {
        "reset_s": "reset (a task's first one compiles its scene)",
        "env_s": "steps",
        "render_s": "rendering",
        "transport_s": "requests on their way",
        "queue_s": "requests waiting for a batch",
        "policy_s": "the policy",
        "recording_s": "recording, and the rest of the loop",
        "writing_s": "encoding, writing, handing out the next",
    }
    title = f"{figures['episodes']} episodes, {figures['steps']:.0f} steps and {figures['requests']:.0f} requests each"
    table = Table(title=title, box=None)
    for name in ("an episode's", "s", "share"):
        table.add_column(name, justify="left" if name.startswith("an") else "right")
    for name, seconds in figures["parts"].items():
        table.add_row(about[name], f"{seconds:.3f}", f"{seconds / figures['episode_s']:.1%}")
    console = Console(width=110)
    console.print(table)
    limit = sum(figures["parts"][name] for name in ("reset_s", "env_s", "render_s"))
    console.print(f"whole {figures['episode_s']:.2f} s; limit (the environment alone) {limit:.2f} s", highlight=False)
    both = figures["transport_ms"] + figures["queue_ms"]
    verdict = "met" if both <= _TARGET_MS else "MISSED"
    console.print(
        f"a request: {figures['transport_ms']:.2f} ms transport + {figures['queue_ms']:.2f} ms queue = {both:.2f} ms "
        f"(target {_TARGET_MS:g} ms: {verdict})",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
