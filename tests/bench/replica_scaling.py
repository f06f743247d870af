"""Scaling over policy replicas in a real run with Ray actors, connections and batches, and policies that sleep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

ACTORS_EACH = 4  # env actors that keep a replica busy if it answers one request at a time
_TASKS = 2


@dataclass(frozen=True, slots=True)
class ReplicaRate:
    """Rate of a run of fake episodes."""

    replicas: int
    env_actors: int
    episodes: int
    per_min: float  # episodes per minute, over the middle half of the run's requests
    busy: float  # share of the time in which a replica computes


def measure(replicas: int, env_actors: int, episodes: int) -> ReplicaRate:
    """Run `episodes` fake episodes in a separate process. Raise CalledProcessError if they cannot run."""
    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as folder:
        options = {
            "task_suite": "fake",
            "policy": "tests.bench.sleeping",
            "tasks": f"0-{_TASKS - 1}",
            "num_trials_per_task": -(-episodes // _TASKS),
            "num_parallel": env_actors,
            "ray.env_cpus": 0.1,
            "ray.num_policy_actors": replicas,
            "batching.max_batch_size": 1,
            "video.mode": "none",
            "output_dir": folder,
        }
        command = [sys.executable, "-m", "wpray.launch"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
        return _rate(Path(folder), replicas, env_actors)


def _rate(folder: Path, replicas: int, env_actors: int) -> ReplicaRate:
    """Return the rate by answered requests, because so few episodes end that their ends say little."""
    keys = ["task_id", "trial"]
    episodes = pq.read_table(folder / "episodes.parquet", columns=[*keys, "started_at"])
    decisions = pq.read_table(folder / "decisions.parquet", columns=[*keys, "asked_s", "wait_s", "compute_s"])
    asked = decisions.filter(pc.greater(decisions["wait_s"], 0))  # a plan's first segment comes without a request
    started = {(row["task_id"], row["trial"]): row["started_at"].timestamp() for row in episodes.to_pylist()}
    answered = sorted(
        started[row["task_id"], row["trial"]] + row["asked_s"] + row["wait_s"] for row in asked.to_pylist()
    )
    first, last = len(answered) // 4, 3 * len(answered) // 4
    requests_per_s = (last - first) / (answered[last] - answered[first])
    per_s = requests_per_s * len(started) / len(answered)
    busy = requests_per_s * pc.mean(asked["compute_s"]).as_py() / replicas
    return ReplicaRate(replicas, env_actors, len(started), 60 * per_s, busy)
