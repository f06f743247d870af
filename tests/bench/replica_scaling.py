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
    per_min: float  # episodes' worth of computing per minute, over the middle half of the answers
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
        return rate_of(Path(folder), replicas, env_actors)


def rate_of(folder: Path, replicas: int, env_actors: int) -> ReplicaRate:
    """Return the rate in `folder` by how many replicas compute between a quarter and three quarters of the answers.

    Few episodes end in that time, and a plan takes as long as several segments, so neither are counted.
    """
    keys = ["task_id", "trial"]
    episodes = pq.read_table(folder / "episodes.parquet", columns=[*keys, "started_at"])
    decisions = pq.read_table(folder / "decisions.parquet", columns=[*keys, "asked_s", "wait_s", "compute_s"])
    asked = decisions.filter(pc.greater(decisions["wait_s"], 0))  # a plan's first segment comes without a request
    started = {(row["task_id"], row["trial"]): row["started_at"].timestamp() for row in episodes.to_pylist()}
    answers = sorted(
        (started[row["task_id"], row["trial"]] + row["asked_s"] + row["wait_s"], row["compute_s"])
        for row in asked.to_pylist()
    )
    begin, end = answers[len(answers) // 4][0], answers[3 * len(answers) // 4][0]
    spans = ((max(begin, answered - compute_s), min(end, answered)) for answered, compute_s in answers)
    computing = sum(max(0.0, last - first) for first, last in spans) / (end - begin)  # replicas at a time
    episode_s = pc.sum(asked["compute_s"]).as_py() / len(started)
    return ReplicaRate(replicas, env_actors, len(started), 60 * computing / episode_s, computing / replicas)
