"""Cost of merging many parts, measured in a separate process so that the peak memory is the merge's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wpray.results.encode import EpisodeContext, encode_episode
from wpray.results.merge import merge
from wpray.results.writer import RunFolder
from wpray.types import Decision, EpisodeResult, EpisodeTimes, Task, Timing, Trajectory, Trial

_MODELS = 100  # episodes whose decisions differ; the others repeat them
_PLANS, _SEGMENTS = 3, 17


@dataclass(frozen=True, slots=True)
class MergeCost:
    """Cost of a merge of synthetic parts."""

    parts: int
    wall_s: float
    cpu_s: float
    before_mib: float  # resident memory after the imports
    peak_mib: float


def measure(num_parts: int) -> MergeCost:
    """Create `num_parts` parts of 20 decisions each and merge them."""
    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as path:
        make_parts(RunFolder(Path(path)), num_parts)
        command = [sys.executable, "-m", "tests.bench.merge_cost", path, str(num_parts)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        found = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
        return MergeCost(**json.loads(found.stdout))


def make_parts(folder: RunFolder, count: int) -> None:
    """Fill `folder` with parts of a synthetic suite."""
    task = Task("synthetic", 0, "pick_up_the_thing_and_place_it", "pick up the thing and place it", count, 280)
    folder.part_path(Trial(task, 0, 0).key).parent.mkdir(parents=True)
    results = [_result(Trial(task, trial, 0)) for trial in range(min(count, _MODELS))]
    for trial in range(count):
        folder.part_path(Trial(task, trial, 0).key).write_bytes(_part(Trial(task, trial, 0), results[trial % _MODELS]))


def _result(trial: Trial) -> EpisodeResult:
    decisions = [_decision(number, trial.init_state) for number in range(_PLANS + _SEGMENTS)]
    nothing = Trajectory(np.zeros((0, 7)), (), None)
    times = EpisodeTimes(0.05, 1.6, 0.1, 1.0, 2.8)
    return EpisodeResult(trial, True, 290, _PLANS, _SEGMENTS, tuple(decisions), nothing, times)


def _part(trial: Trial, result: EpisodeResult) -> bytes:
    now = datetime.now(UTC)
    context = EpisodeContext("bench", "waypoint_vla", "models/vlm", "wpray", "host", "env-0", 1, now, now)
    return encode_episode(replace(result, trial=trial), context, "none").part


def _decision(number: int, seed: int) -> Decision:
    plan: dict[str, Any] = {"waypoints": None, "durations": None, "waypoint_index": number % 7, "duration": 16}
    if number < _PLANS:
        drawn = np.random.default_rng((seed, number))
        waypoints = drawn.normal(size=(7, 8)).astype(np.float32)
        plan = {"waypoints": waypoints, "durations": drawn.integers(1, 33, 7), "waypoint_index": None, "duration": None}
    kind: Any = "plan" if number < _PLANS else "segment"
    timing = Timing(0.01, 0.1, 8)
    return Decision(kind, 10 + number, number % _PLANS, number, wait_s=0.1, timing=timing, asked_s=0.1 * number, **plan)


def _merged(folder: RunFolder, count: int) -> MergeCost:
    before, began, began_cpu = _peak_mib(), time.perf_counter(), time.process_time()
    merge(folder)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    return MergeCost(count, wall_s, cpu_s, before, _peak_mib())


def _peak_mib() -> float:
    """Return this program's peak memory; getrusage would include that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    print(json.dumps(asdict(_merged(RunFolder(Path(sys.argv[1])), int(sys.argv[2])))))
