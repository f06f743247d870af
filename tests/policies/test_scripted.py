"""The scripted policy: it proves the harness, so it must succeed, through the interfaces of a learned policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from wpray.benchmarks.base import Environment
from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy, policy_spec
from wpray.policies.local import LocalPolicyClient
from wpray.policies.scripted.arm_motion import POSITION_SCALE, commands_towards, steps_towards
from wpray.policies.scripted.grasping import find_grasp
from wpray.policies.scripted.policy import ScriptedPolicy
from wpray.rollout import run_trial
from wpray.types import ObjectState, Observation, ObservationSpec, PlanRequest, PrivilegedState, SegmentRequest, Trial

TRIAL = Trial(list_tasks("fake")[0], 0, seed=0)


@pytest.fixture(scope="module")
def real() -> Iterator[Environment]:
    env = make_environment("libero_object", "wpray")
    yield env
    env.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_solves_every_task_of_the_fake_suite(seed: int) -> None:
    env, policy = make_environment("fake", "wpray"), LocalPolicyClient(ScriptedPolicy())
    trials = [Trial(task, trial, seed) for task in list_tasks("fake") for trial in range(5)]
    failed = [trial.key for trial in trials if not run_trial(env, policy, trial).success]
    assert not failed


@pytest.mark.libero
@pytest.mark.parametrize(("task_id", "trial"), [(2, 0), (9, 1)])
def test_it_solves_libero_object(real: Environment, task_id: int, trial: int) -> None:
    task = list_tasks("libero_object")[task_id]
    result = run_trial(real, LocalPolicyClient(ScriptedPolicy()), Trial(task, trial, seed=0))
    assert result.success
    (progress,) = result.metrics.items()
    assert progress[0].startswith("progress/in(") and progress[1] == 1
    assert 60 < result.num_steps < 200
    assert result.times.render_s == 0  # it asks for no images, so none are rendered
    plan = result.decisions[0]
    assert plan.waypoints is not None and plan.waypoints.shape == (7, 8)
    assert (result.trajectory.actions[10:, 6] != 0).all()


@pytest.mark.libero
def test_doing_nothing_solves_nothing(real: Environment) -> None:
    task = dataclasses.replace(list_tasks("libero_object")[9], max_steps=30)
    policy = build_policy(Config(policy="noop"))
    result = run_trial(real, LocalPolicyClient(policy), Trial(task, 0, seed=0))
    assert (result.success, result.num_steps) == (False, 40)
    assert list(result.metrics.values()) == [0]


def test_the_random_policy_depends_on_the_trial_alone() -> None:
    env, policy = make_environment("fake", "wpray"), LocalPolicyClient(build_policy(Config(policy="random")))
    first = run_trial(env, policy, TRIAL)
    run_trial(env, policy, dataclasses.replace(TRIAL, init_state=1))
    assert np.array_equal(run_trial(env, policy, TRIAL).trajectory.actions, first.trajectory.actions)
    other = run_trial(env, policy, dataclasses.replace(TRIAL, seed=1))
    assert not np.array_equal(other.trajectory.actions[10:20], first.trajectory.actions[10:20])


def test_it_says_what_it_cannot_solve_before_anything_starts() -> None:
    with pytest.raises(BadInputError, match="solves libero_object only, not libero_goal"):
        policy_spec(Config(policy="scripted", task_suite="libero_goal"))
    with pytest.raises(BadInputError, match="did you mean scripted"):
        policy_spec(Config(policy="scriptd"))
    with pytest.raises(BadInputError, match=r"cannot import no_such\.policy"):
        policy_spec(Config(policy="no_such.policy"))


@pytest.mark.libero
def test_it_does_what_noop_does_where_it_solves_nothing_and_is_to_stay() -> None:
    config = Config(policy="scripted", task_suite=["libero_object", "libero_10"], policy_args={"elsewhere": "stay"})
    assert policy_spec(config) == ScriptedPolicy.spec
    env = make_environment("libero_10", "wpray")
    trial = Trial(
        dataclasses.replace(list_tasks("libero_10")[2], max_steps=45), 0, 0
    )  # a stove: more than free objects
    ours, theirs = (
        run_trial(env, LocalPolicyClient(policy), trial)
        for policy in (build_policy(config), build_policy(Config(policy="noop")))
    )
    env.close()
    assert np.array_equal(ours.trajectory.actions, theirs.trajectory.actions)
    assert (ours.success, ours.num_plans, ours.num_segments) == (False, theirs.num_plans, theirs.num_segments)


def test_without_the_simulator_s_state_it_says_so() -> None:
    with pytest.raises(BadInputError, match="needs the simulator's state"):
        ScriptedPolicy().plan([PlanRequest(TRIAL, 0, 0, Observation(np.zeros(8)))])


def test_a_batch_is_answered_as_its_requests_are_alone() -> None:
    policy, env = ScriptedPolicy(), make_environment("fake", "wpray")
    requests = []
    for trial in range(4):
        env.reset(dataclasses.replace(TRIAL, init_state=trial))
        requests.append(PlanRequest(TRIAL, 0, 0, env.observe(ObservationSpec(cameras={}, privileged=True))))
    for together, request in zip(policy.plan(requests), requests, strict=True):
        (alone,) = policy.plan([request])
        assert np.array_equal(together.plan.waypoints, alone.plan.waypoints)
        assert np.array_equal(together.plan.durations, alone.plan.durations)
        assert together.first is not None and alone.first is not None
        assert np.array_equal(together.first.actions, alone.first.actions)


def test_a_plan_goes_on_with_an_object_that_is_in_the_hand() -> None:
    held, on_the_ground = (_scene(height) for height in (0.2, 0.02))
    carry, fetch = (
        ScriptedPolicy().plan([PlanRequest(TRIAL, 0, 0, Observation(np.zeros(8), privileged=state))])[0].plan
        for state in (held, on_the_ground)
    )
    assert carry.waypoints[0, 6] == 0  # the fingers stay closed
    assert fetch.waypoints[0, 6] > 0.03
    assert (np.diff(np.flatnonzero(carry.durations == 0)) == 1).all()
    assert ((carry.durations >= -1) & (carry.durations <= 32)).all()
    assert ((fetch.durations > 0) & (fetch.durations <= 32)).all()


def test_a_segment_has_the_asked_length_and_stays_within_the_action_limits() -> None:
    start = np.zeros(32, np.float32)
    end = np.array([0.3, -0.2, 0.4, 3.0, 0, 0, 0.0, 0.0], np.float32)
    request = SegmentRequest(TRIAL, 0, 1, Observation(np.zeros(8), privileged=_scene(0.02)), start, end, duration=17)
    (reply,) = ScriptedPolicy().act([request])
    assert reply.segment.actions.shape == (17, 7)
    assert np.abs(reply.segment.actions).max() <= 1
    assert (reply.segment.actions[:, 6] == 1).all()  # closes


def test_the_hand_grasps_across_the_narrow_side() -> None:
    """A box of 2 cm by 8 cm, turned: the fingers, which start along x, must end up across it."""
    for angle in np.deg2rad([0, 30, 75, -50]):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        outline = np.array([[-0.01, -0.04], [0.01, -0.04], [0.01, 0.04], [-0.01, 0.04]]) @ turn.T
        box = ObjectState("box", np.zeros(3), outline, 0.0, 0.06)
        state = dataclasses.replace(_scene(0.02), objects=(box,), target="box", finger_axis=np.array([1.0, 0, 0]))
        grasp = find_grasp(state, box)
        assert abs(np.rad2deg(grasp.turn - angle)) < 10
        assert 0 < grasp.height < 0.06


def test_commands_bring_the_hand_there_in_the_steps_foreseen() -> None:
    near, far = (steps_towards(np.array([x, 0, 0]), POSITION_SCALE, 0.005) for x in (0.02, 0.25))
    assert 0 < near < far <= 32
    commands = commands_towards(np.array([0.25, 0, 0]), 32, POSITION_SCALE)
    assert commands.shape == (32, 3) and np.abs(commands).max() <= 1
    assert abs(commands[-1, 0]) < 0.1 < commands[0, 0]


def _scene(height: float) -> PrivilegedState:
    """A cube at `height` with the hand around it, beside one that is on the ground."""
    square = 0.02 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    cube = ObjectState("cube", np.array([0, 0, height]), square, height - 0.02, height + 0.02)
    basket = ObjectState("basket", np.array([0.3, 0, 0]), square + np.array([0.3, 0]), 0.0, 0.1)
    hand = np.array([0.0, 0.0, height])
    return PrivilegedState(hand, np.eye(3), np.array([0.0, 1.0, 0.0]), (cube, basket), "cube", "basket")
