"""`python -m wpray.bench e2e`: an episode's time by activity, with a policy that costs nothing.

This is a real run (Ray, environments, images sent, trajectories written) of a policy that answers at once. The limit
beside the figures is the environment itself: reset, steps, and the renders that the policy asks for.

`--environments 24,44,auto` makes a run with each number, and `--config FILE` with the policy of that file. The last
table compares measured paces with those that `--plan` foretells, and with the best number given.
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
from wpray.bench.paces import Pace, figures_of, print_paces
from wpray.benchmarks.factory import DEFAULT_SUITE
from wpray.cli.arguments import expanded_path, file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.configuration import expand_paths, read_yaml, validate
from wpray.cli.parser import ArgumentParser
from wpray.cluster import process_env
from wpray.config import Config
from wpray.config.value_types import Auto
from wpray.errors import BadInputError, RunStoppedError

_TARGET_MS = 5.0  # transport and queue per request


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if transport and queue of a request exceed the target, else 0."""
    args = _parser().parse_args(argv)
    if args.environments is not None and args.envs is not None:
        raise BadInputError("--envs and --environments mean the same: give one of them")
    numbers: list[int | Auto] = args.environments or [args.envs or "auto"]
    for number in numbers:
        _config(args, tempfile.gettempdir(), number)  # checks the configuration before anything starts
    process_env.prepare(joins_a_cluster=False)
    found = [_measured(args, number) for number in numbers]
    console, figures = Console(width=110), found[0][0]
    if len(found) == 1:
        _print(figures, args.config is None)
    paces, source = [pace for _, pace, _ in found], found[0][2]
    print_paces(paces, source, console)
    runs = [{**figures, **pace} for (figures, _, _), pace in zip(found, figures_of(paces), strict=True)]
    write_figures(args.json, runs[0] if args.environments is None else runs)
    is_harness = len(found) == 1 and args.config is None  # else a request also waits for the policy's batches
    return int(is_harness and figures["transport_ms"] + figures["queue_ms"] > _TARGET_MS)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.bench e2e", description=__doc__)
    parser.add_argument("--suite", help=f"suite (default: that of --config, else {DEFAULT_SUITE})")
    parser.add_argument("--tasks", help="task ids (default: those of --config, else 0-1)")
    parser.add_argument("--trials", type=whole(1, 100_000), default=5, help="trials of each task (%(default)s)")
    parser.add_argument("--envs", type=_number, help="env actors (default: auto)")
    parser.add_argument(
        "--environments", type=_numbers, metavar="A,B,auto", help="several numbers of env actors, each in a run"
    )
    parser.add_argument("--config", type=expanded_path, metavar="FILE", help="a run's YAML file, for its policy")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    return parser


def _number(text: str) -> int | Auto:
    return "auto" if text == "auto" else whole(1, 10_000)(text)


def _numbers(text: str) -> list[int | Auto]:
    return [_number(part) for part in text.split(",")]


def _measured(args: argparse.Namespace, number: int | Auto) -> tuple[dict[str, Any], Pace, str]:
    """Run with `number` environments; return an episode's figures, the run's pace, and what its forecast rests on."""
    from wpray.run.evaluation import evaluate
    from wpray.run.plan import plan_of

    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as folder:
        config = _config(args, folder, number)
        plan = plan_of(config)
        if evaluate(config):
            raise RunStoppedError("bench e2e measures whole runs, and this one has errors (see above)")
        return measure(Path(folder)), Pace.of(number, Path(folder), plan), plan.speeds.source


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


def _config(args: argparse.Namespace, folder: str, number: int | Auto) -> Config:
    given: dict[str, Any] = {"policy": "wpray.bench.instant", "task_suite": DEFAULT_SUITE, "tasks": "0-1"}
    if args.config is not None:
        given = {name: value for name, value in read_yaml(args.config).items() if name != "num_parallel"}
    given |= {"task_suite": args.suite} if args.suite else {}
    given |= {"tasks": args.tasks} if args.tasks else {}
    given |= {"num_trials_per_task": args.trials, "output_dir": folder, "video": {"mode": "none"}}
    return expand_paths(validate(given | {"ray": {**given.get("ray", {}), "num_env_actors": number}}))


def _print(figures: dict[str, Any], with_target: bool) -> None:
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
    verdict = f" (target {_TARGET_MS:g} ms: {'met' if both <= _TARGET_MS else 'MISSED'})" if with_target else ""
    console.print(
        f"a request: {figures['transport_ms']:.2f} ms transport + {figures['queue_ms']:.2f} ms queue = {both:.2f} ms"
        + verdict,
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
