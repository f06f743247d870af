"""Benchmarks may differ from LIBERO in everything that they declare: actions, proprio, cameras, columns, frequency."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.two_arms import ACTION, JOINTS, REST, Arms, Reacher, TwoArms
from wpray import launch
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.export import __main__ as export
from wpray.export.lerobot import video_keys
from wpray.policies.factory import build_policy
from wpray.policies.fit import fitting_spec
from wpray.policies.local import LocalPolicyClient
from wpray.provenance.origins import named_versions
from wpray.provenance.record import decisive_names, differing
from wpray.results import load
from wpray.results.reader import matrix
from wpray.rollout import RolloutSettings, run_trial
from wpray.testing import check_benchmark
from wpray.testing.policies import check_policy
from wpray.types import ActionSpec, Trial

NAME = "tests.benchmarks.two_arms:TwoArms"
HERE = ("--benchmark", NAME, "--task_suite", "two_arms")
POLICY = "tests.benchmarks.two_arms:Reacher"


def _config(policy: str) -> Config:
    return Config(policy=policy, benchmark=NAME, task_suite="two_arms")


def test_it_keeps_the_promises() -> None:
    check_benchmark(TwoArms, "two_arms")


@pytest.mark.parametrize("policy", ["noop", "random", POLICY])
def test_policies_for_any_robot_and_one_of_its_own_conform(policy: str) -> None:
    assert "spec" in check_policy(policy, suite="two_arms", benchmark=NAME)
    fitting_spec(_config(policy))


def test_the_noop_policy_stands_still_and_the_random_one_moves_within_the_bounds() -> None:
    task = TwoArms().tasks("two_arms", 60, "file_name")[0]
    settings = RolloutSettings(action=ACTION)
    still, moved = (
        run_trial(Arms(), LocalPolicyClient(build_policy(_config(policy))), Trial(task, 0, 0), settings)
        for policy in ("noop", "random")
    )
    assert all(np.array_equal(state["joints"], REST) for state in still.trajectory.states)
    actions = moved.trajectory.actions
    assert actions.shape == (70, JOINTS) and not (np.abs(actions[10:]) <= 1).all()
    assert (actions >= ACTION.low).all() and (actions <= np.array(ACTION.high)).all()
    plans = [decision.waypoints for decision in moved.decisions if decision.kind == "plan"]
    assert all(plan is not None and plan.shape == (7, 2 * JOINTS) for plan in plans)


@pytest.mark.parametrize("policy", ["scripted", "openpi"])
def test_a_policy_of_another_robot_is_refused(policy: str) -> None:
    with pytest.raises(BadInputError):
        fitting_spec(_config(policy))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ActionSpec(6, low=(0.0,)), "low is not one bound or 6"),
        (ActionSpec(6, low=1.0), "low is not below high"),
        (ActionSpec(6, low=0.5), "still is out of bounds"),
        (ActionSpec(6, still=(0.0, 0.0)), "still has 2 numbers, not 6"),
        (ActionSpec(6, names=("x",)), "1 names of 6 numbers"),
    ],
)
def test_actions_that_are_oddly_declared_are_named(spec: ActionSpec, said: str) -> None:
    from wpray.testing.benchmarks import actions_have_bounds_and_one_that_stands_still, case_of

    class Odd(TwoArms):
        def action_spec(self, suite: str) -> ActionSpec:
            return spec

    with case_of(Odd, "two_arms") as case, pytest.raises(AssertionError, match=said):
        actions_have_bounds_and_one_that_stands_still(case)


@pytest.mark.ray
def test_a_run_its_videos_and_its_data_set(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "set"
    options = ("--policy", POLICY, "--num_trials_per_task", "2", "--num_parallel", "1", "--video.mode", "all")
    assert run_command(launch.main, [*HERE, *options, "--output_dir", str(folder)]) == 0
    run = load(folder)
    assert run.action == ACTION and run.action.names == ACTION.names and run.action.high == ACTION.high
    assert run.info["versions"]["benchmark PIL"] == f"pillow {importlib.metadata.version('pillow')}"
    assert all(row["reward"] < 0 and row["truncated"] is False for row in run.episodes.to_pylist())
    steps = run.trajectory(("two_arms", 0, 1))
    assert steps.column_names == ["step", "action", "joints", "goals"]
    assert matrix(steps, "action").shape == (40, JOINTS) and np.array_equal(matrix(steps, "action")[0], REST)
    assert steps.schema.field("action").metadata == {b"description": b"joints"}
    assert len(list((folder / "videos").iterdir())) == 2
    page = (folder / "report.html").read_text()
    assert "distance_rad" in page and "<th>reward</th>" in page
    assert run_command(export.main, ["lerobot", str(folder), str(data), "--no-videos"]) == 0
    info = json.loads((data / "meta" / "info.json").read_text())
    assert (info["robot_type"], info["fps"]) == ("aloha", 50)
    assert info["features"]["action"] == {"dtype": "float32", "shape": [JOINTS], "names": list(ACTION.names)}
    assert info["features"]["observation.state"]["names"] == [f"joints{number}" for number in range(1, JOINTS + 1)]
    frames = pq.read_table(data / "data" / "chunk-000" / "file-000.parquet")
    assert len(frames) == 60
    np.testing.assert_allclose(matrix(frames, "observation.state")[0], REST, atol=1e-6)


def test_a_data_set_has_a_feature_for_every_camera() -> None:
    assert [name.split(".")[-1] for name in video_keys(3)] == ["image", "image2", "image3"]
    assert video_keys(0) == []


def test_the_versions_of_the_packages_that_it_names_must_agree() -> None:
    ours, theirs = named_versions("two_arms", NAME), {"benchmark PIL": "pillow 1.0"}
    assert differing(ours, theirs, decisive_names(ours, theirs)) == ["benchmark PIL"]


def test_the_policy_is_what_the_test_says() -> None:
    assert Reacher.spec.action == ACTION, "bounds, names and what stands still are the benchmark's alone"
