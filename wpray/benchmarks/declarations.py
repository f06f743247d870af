"""Declarations of a benchmark that run.json holds, so that readers of trajectories need no benchmark."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wpray.benchmarks.base import Benchmark


def declarations(benchmark: Benchmark, suite: str) -> dict[str, Any]:
    """Return the robot, its control frequency, the meaning of actions and the columns of trajectories."""
    return {
        "robot": benchmark.robot,
        "control_hz": benchmark.control_hz,
        "action_spec": asdict(benchmark.action_spec(suite)),
        "state_columns": [asdict(column) for column in benchmark.state_columns()],
    }
