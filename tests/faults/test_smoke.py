"""One fault of each kind, in every test run; the long suite is `pytest -m faults`."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.faults import runs
from tests.faults.conftest import Record

pytestmark = pytest.mark.ray
FEW = ("--tasks", "0-2", "--num_trials_per_task", "8", "--num_parallel", "3")


def test_actors_and_driver_die_and_the_table_is_the_same(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*FEW)
    rng = random.Random(1)
    kinds = (runs.ENV, runs.POLICY, runs.RENDER)
    with runs.launched(tmp_path / "run", *FEW, "--env.render", "remote") as run:
        killed = runs.harm_repeatedly(run, rng, [(kind, SIGKILL) for kind in kinds], (0.1, 0.5))
        assert run.wait_for(lambda: run.finished_trials > 4) and run.alive
        assert not run.kill(), "actors outlive their driver"
        kept = run.finished_trials
    with runs.launched(tmp_path / "run", *FEW) as run:
        assert run.end() == 0, run.text[-3000:]
    assert f"resuming {run.folder}: {kept} of 24 episodes are finished" in run.text
    assert killed == 3
    runs.assert_same(run.folder, undisturbed)
    survived("smoke: env actor, policy actor, render actor, driver: kill -9", 4)
