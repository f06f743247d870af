"""The same faults on real LIBERO: compiled scenes, OpenGL contexts and megabytes of trajectories."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGSEGV, SIGSTOP

import pytest

from tests.faults import runs
from tests.faults.conftest import Record
from tests.faults.runs import ENV, POLICY

pytestmark = [pytest.mark.faults, pytest.mark.libero]
SUITE = {"policy": "scripted", "suite": "libero_object"}
FEW = ("--tasks", "0-1", "--num_trials_per_task", "10", "--num_parallel", "2")
OPTIONS = (*FEW, "--retry.max_attempts", "100", "--retry.stall_s", "30")


def test_real_episodes_survive_everything(tmp_path: Path, reference: Callable[..., Path], survived: Record) -> None:
    undisturbed = reference(*FEW, **SUITE)
    rng = random.Random(2)
    actors = [(ENV, SIGKILL), (POLICY, SIGKILL), (ENV, SIGSEGV), (POLICY, SIGKILL), (POLICY, SIGKILL), (ENV, SIGSTOP)]
    with runs.launched(tmp_path / "run", *OPTIONS, **SUITE) as run:
        first = runs.harm_repeatedly(run, rng, actors[:4], (0.2, 4.0))
        assert run.wait_for(lambda: run.finished_trials > 2, 120) and run.alive
        assert not run.kill(), "actors outlive their driver"
    with runs.launched(tmp_path / "run", *OPTIONS, **SUITE) as run:
        assert run.wait_for(lambda: run.actors(ENV, working=True))
        moment, kept = time.monotonic() + rng.uniform(0.0, 12.0), run.finished_trials
        assert run.wait_for(lambda: time.monotonic() > moment or run.finished_trials > kept + 2) and run.alive
        assert not run.kill(), "actors outlive their driver"
    with runs.launched(tmp_path / "run", *OPTIONS, **SUITE) as run:
        second = runs.harm_repeatedly(run, rng, [*actors[4:], (ENV, SIGKILL), (POLICY, SIGKILL)], (0.2, 2.0))
        assert run.end(300) == 0, run.text[-3000:]
    assert first + second + 2 >= 10
    runs.assert_same(run.folder, undisturbed)
    survived("real LIBERO: actors killed, crashed, frozen", first + second)
    survived("real LIBERO: driver: kill -9, same command again", 2)
