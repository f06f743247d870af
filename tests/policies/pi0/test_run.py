"""pi0 in whole episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
from tests.policies.pi0.test_answers import built, configured
from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.launch import main as launch
from wpray.policies.local import LocalPolicyClient
from wpray.policies.pi0 import synthetic
from wpray.results import load, matrix
from wpray.rollout import run_trial
from wpray.types import Trial


@pytest.mark.ray
def test_a_run_has_the_episodes_that_one_environment_alone_has(tmp_path: Path) -> None:
    assert synthetic.main([str(tmp_path / "weights"), "--precision", "float32"]) == 0
    options = ["--config", str(tmp_path / "weights" / "config.yaml"), "--task_suite", "fake", "--tasks", "0-2"]
    options += ["--env.max_steps", "30", "--num_parallel", "3", "--video.mode", "none"]
    assert launch([*options, "--output_dir", str(tmp_path / "run")]) == 0
    run = load(tmp_path / "run")
    policy, env = LocalPolicyClient(built(configured(tmp_path / "weights"))), make_environment("fake", "wpray")
    for task in list_tasks("fake", max_steps=30)[:3]:
        alone = run_trial(env, policy, Trial(task, 0, seed=0))
        found = run.trajectory(("fake", task.task_id, 0))
        assert np.array_equal(matrix(found, "action"), alone.trajectory.actions)
    assert {row["kind"] for row in run.decisions.to_pylist()} == {"chunk"}
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert str(tmp_path / "weights" / "model.safetensors") in info["policy_files"]
    assert info["policy_sources"]["pi0"]["checkpoint"] == str(tmp_path / "weights") == run.checkpoint


@pytest.mark.libero
def test_a_short_episode_on_libero(pi0_folder: Path) -> None:
    policy = built(configured(pi0_folder).model_copy(update={"task_suite": "libero_spatial"}))
    env = make_environment("libero_spatial", "wpray")
    try:
        task = replace(list_tasks("libero_spatial")[0], max_steps=12)
        result = run_trial(env, LocalPolicyClient(policy), Trial(task, 0, seed=0))
    finally:
        env.close()
    assert (result.success, result.num_chunks) == (False, 3)  # of 5, 5 and 2 steps
    assert [decision.steps for decision in result.decisions] == [5, 5, 2]
    assert np.isfinite(result.trajectory.actions).all()
