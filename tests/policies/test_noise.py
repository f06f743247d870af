from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from wpray.config import Config
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.noise import NoiseKey, flow_noise, noise_key
from wpray.types import Observation, PlanRequest, SegmentRequest, Task, Trial

KEY = NoiseKey(seed=0, suite="libero_object", task_id=3, trial=7, plan_index=1, segment_index=9)


def test_values_never_change() -> None:
    """Pinned: a change of these numbers changes every recorded outcome."""
    noise = flow_noise(KEY, (32, 32))
    assert noise.dtype == np.float32
    assert noise[0, :4].tolist() == [1.9507941007614136, -1.0953257083892822, 0.42762070894241333, 0.32808738946914673]
    assert noise[31, 28:].tolist() == [
        -1.9340006113052368,
        -0.9626769423484802,
        -0.7695987224578857,
        -0.2424105405807495,
    ]


@pytest.mark.parametrize("name", [field.name for field in fields(NoiseKey)])
def test_every_part_of_the_key_counts(name: str) -> None:
    value = getattr(KEY, name)
    other = replace(KEY, **{name: value + ("x" if isinstance(value, str) else 1)})
    correlation = np.corrcoef(flow_noise(KEY, (4096,)), flow_noise(other, (4096,)))[0, 1]
    assert abs(correlation) < 0.08


def test_noise_is_standard_normal() -> None:
    noise = np.stack([flow_noise(replace(KEY, segment_index=index), (32, 32)) for index in range(100)])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs((np.abs(noise) < 1.96).mean() - 0.95) < 0.01


def test_a_plans_first_segment_and_the_same_segment_asked_for_share_a_key() -> None:
    trial = Trial(Task("libero_object", 3, "name", "do it", 50, 280), 7, 0)
    observation, waypoint = Observation(np.zeros(8)), np.zeros(32, np.float32)
    plan = PlanRequest(trial, 1, 9, observation)
    segment = SegmentRequest(trial, 1, 9, observation, waypoint, waypoint, 5)
    assert noise_key(plan) == noise_key(segment) == KEY


def _request(task_id: int, trial: int, segment_index: int, seed: int = 0) -> PlanRequest:
    task = Task("libero_spatial", task_id, "name", "do it", 50, 220)
    return PlanRequest(Trial(task, trial, seed), 0, segment_index, Observation(np.zeros(8)))


@pytest.mark.parametrize(("seed", "task", "trial"), [(7, 0, 0), (7, 3, 2), (42, 9, 4)])
def test_reference_noise_is_the_recorded_one(
    golden_io: dict[str, np.ndarray], seed: int, task: int, trial: int
) -> None:
    """Whatever was asked before, in any order; torch's kernels differ in the last bits."""
    noise = waypoint_vla._own_noise(Config(noise="reference", eval_seed=seed))
    for index in (1, 0, 1):
        ours = noise(_request(task, trial, index), (32, 32))
        assert np.abs(ours - golden_io[f"noise_{seed}_{task}_{trial}"][index]).max() < 2e-6


def test_an_evaluations_seed_replaces_the_runs_in_the_key_alone() -> None:
    request = _request(3, 7, 9, seed=5)
    of_run, of_evaluation = (waypoint_vla._own_noise(Config(eval_seed=seed)) for seed in (None, 11))
    key = noise_key(request)
    assert np.array_equal(of_run(request, (32, 32)), flow_noise(key, (32, 32)))
    assert np.array_equal(of_evaluation(request, (32, 32)), flow_noise(replace(key, seed=11), (32, 32)))
