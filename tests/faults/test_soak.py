"""2,000 episodes with an env actor killed during one in a hundred: memory stays where it was."""

from __future__ import annotations

import random
import time
from pathlib import Path
from signal import SIGKILL

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.faults import runs
from tests.faults.conftest import Record

pytestmark = [pytest.mark.faults, pytest.mark.slow]
EPISODES, EVERY = 2000, 100
_NOISE = 3.0  # standard deviations
_LEAST_BYTES = 8 * 2**20  # of growth over the run: below this an allocator's habits show, not a leak


def test_memory_of_driver_and_policy_is_flat_over_2000_episodes(tmp_path: Path, survived: Record) -> None:
    rng = random.Random(4)
    samples: list[tuple[int, int, int]] = []
    kills = 0
    options = ("--num_trials_per_task", str(EPISODES // 10), "--num_parallel", "2", "--retry.max_attempts", "100")
    with runs.launched(tmp_path / "run", *options, "--env.max_steps", "60", policy="random") as run:
        assert run.wait_for(lambda: run.finished_trials)
        driver, policy = psutil.Process(run.process.pid), run.actors(runs.POLICY)[0]
        due = rng.uniform(0, 2 * EVERY)
        while run.alive and (done := run.finished_trials) < EPISODES:
            if done >= due and runs.harm(run, rng, runs.ENV, SIGKILL, working=True):
                kills, due = kills + 1, due + rng.uniform(0, 2 * EVERY)
            try:
                samples.append((done, driver.memory_info().rss, policy.memory_info().rss))
            except psutil.NoSuchProcess:  # the run ended while its rows were counted, or the policy died
                break
            time.sleep(0.3)
        assert run.end() == 0, run.text[-3000:]
    assert samples[-1][0] > 0.9 * EPISODES, "the policy actor was not the same until the end"
    keys = pq.read_table(run.folder / "episodes.parquet", columns=["task_id", "trial", "status"]).to_pylist()
    assert len({(row["task_id"], row["trial"]) for row in keys}) == len(keys) == EPISODES
    assert all(row["status"] != "error" for row in keys)
    assert kills >= EPISODES // EVERY // 2
    growth = [_growth(samples, column) for column in (1, 2)]
    said = "memory over 2,000 episodes: " + ", ".join(
        f"{name} {grown / 2**20:+.1f} MiB (noise {noise / 2**20:.1f})"
        for name, (grown, noise) in zip(("driver", "policy actor"), growth, strict=True)
    )
    for grown, noise in growth:
        assert grown <= max(_NOISE * noise, _LEAST_BYTES), said
    survived("soak: env actor killed during 1% of 2,000 episodes", kills, said)


def _growth(samples: list[tuple[int, int, int]], column: int) -> tuple[float, float]:
    """Bytes that a straight line through the samples after warming up grows in a whole run, and their scatter."""
    warm = np.array([sample for sample in samples if sample[0] > EPISODES // 4], dtype=np.float64)
    slope, start = np.polyfit(warm[:, 0], warm[:, column], 1)
    return slope * EPISODES, float(np.std(warm[:, column] - (slope * warm[:, 0] + start)))
