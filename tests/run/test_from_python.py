"""`wpray.evaluate`: a live policy object, callbacks, and the same results as the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wpray
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.results import load
from wpray.types import PlanReply, PlanRequest, Segment, SegmentRequest, WaypointPlan

SETTINGS = {"task_suite": "fake", "tasks": "0-1", "num_trials_per_task": 2, "video": {"mode": "none"}}


class Counting:
    """Moves by a number that its owner may change between two evaluations, as training changes weights."""

    spec = PolicySpec("counting", images=True, privileged=False, num_gpus=0, max_batch_size=4)

    def __init__(self, step: float) -> None:
        self.step, self.answered, self.pid = step, 0, os.getpid()

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        assert os.getpid() == self.pid  # the very object, not a copy
        self.answered += len(requests)
        return [self._answer(request.observation.proprio) for request in requests]

    def act(self, requests: Sequence[SegmentRequest]) -> list[Segment]:
        raise NotImplementedError

    def _answer(self, proprio: Any) -> PlanReply:
        chunk = np.full((16, 7), self.step)
        here = np.asarray(proprio, np.float32)
        return PlanReply(WaypointPlan(here, here[None], np.array([len(chunk)])), Segment(chunk))


def test_a_live_object_is_evaluated_as_it_is_now(tmp_path: Path) -> None:
    policy, seen = Counting(0.1), []
    before = dict(os.environ)
    first = wpray.evaluate({**SETTINGS, "output_dir": str(tmp_path / "a")}, policy, on_episode=seen.append)
    assert len(first.episodes) == 4 and policy.answered > 0
    assert [(done.done, done.total) for done in seen] == [(n, 4) for n in range(1, 5)]
    assert {(done.task.task_id, done.trial) for done in seen} == {(t, n) for t in range(2) for n in range(2)}
    assert seen[-1].overall.trials == 4
    assert first.info["state"] == "finished" and first.info["config"]["policy"].endswith(":Counting")
    assert dict(os.environ) == before
    policy.step = -0.5
    second = wpray.evaluate({**SETTINGS, "output_dir": str(tmp_path / "b")}, policy)
    keys = ("fake", 0, 0)
    moved = [run.trajectory(keys)["action"].to_pylist()[-1][0] for run in (first, second)]
    assert moved == pytest.approx([0.1, -0.5])
    with pytest.raises(BadInputError, match="holds another run's results"):  # other weights, perhaps
        wpray.evaluate({**SETTINGS, "output_dir": str(tmp_path / "a")}, policy)


def test_a_callback_that_fails_costs_no_episode(tmp_path: Path) -> None:
    def fails(done: object) -> None:
        raise RuntimeError("no network")

    run = wpray.evaluate({**SETTINGS, "output_dir": str(tmp_path)}, Counting(0.0), on_episode=fails)
    assert run.info["state"] == "finished" and run.episodes["status"].to_pylist().count("error") == 0
    assert (tmp_path / "run.log").read_text().count("on_episode failed") == 1


def test_a_configured_policy_gives_what_the_command_gives(tmp_path: Path) -> None:
    from wpray.launch import main

    settings = {**SETTINGS, "policy": "random"}
    mine = wpray.evaluate({**settings, "output_dir": str(tmp_path / "a")})
    argv = ["--task_suite", "fake", "--tasks", "0-1", "--num_trials_per_task", "2", "--policy", "random"]
    assert main([*argv, "--video.mode", "none", "--output_dir", str(tmp_path / "b")]) == 0
    columns = ["task_id", "trial", "status", "num_steps"]
    assert mine.episodes.select(columns).equals(load(tmp_path / "b").episodes.select(columns))


@pytest.mark.parametrize(
    ("config", "policy", "reason"),
    [
        ({"task_suit": "fake"}, None, "did you mean task_suite"),
        (3, None, "a mapping, a YAML file or a Config"),
        (SETTINGS, object(), "object has no spec"),
        ({**SETTINGS, "ray": {"submit": "http://head:8265"}}, None, "ray.submit"),
        ({**SETTINGS, "tasks": [99]}, Counting(0.0), "has no task 99"),
        ("nowhere.yaml", None, "nowhere.yaml"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(config: Any, policy: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=reason):
        wpray.evaluate({**config, "output_dir": str(tmp_path / "x")} if isinstance(config, dict) else config, policy)
    assert not (tmp_path / "x").exists()


def test_importing_wpray_stays_light() -> None:
    heavy = "{'ray', 'numpy', 'torch', 'pydantic', 'pyarrow', 'scipy', 'rich'}"
    code = f"import sys, wpray; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
