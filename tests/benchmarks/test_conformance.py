"""What every environment promises, fake or real: the same tests run against each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pytest

from wpray.benchmarks.base import Environment
from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.types import FloatArray, Observation, ObservationSpec, SceneState, SimState, Trial

SUITES = ("fake", "libero_spatial")  # the real one with fixtures that each reset places anew
BLIND, SEEING = ObservationSpec(cameras={}), ObservationSpec()
TRUTH, EVERYTHING = ObservationSpec(cameras={}, privileged=True), ObservationSpec(privileged=True)
CAMERAS = (("agentview", "base_image"), ("robot0_eye_in_hand", "wrist_image"))


@dataclass(frozen=True)
class Cell:
    """An environment and the suite that it runs."""

    suite: str
    env: Environment

    def trial(self, task_id: int = 0, trial: int = 0, seed: int = 0) -> Trial:
        return Trial(list_tasks(self.suite)[task_id], trial, seed)

    def begin(self, trial: Trial) -> None:
        self.env.load(trial.task)
        self.env.reset(trial)


@dataclass(frozen=True)
class Episode:
    """What a trial came to: everything that must not depend on what ran before."""

    scene: SceneState
    states: list[SimState]
    done: list[bool]
    seen: list[Observation]


@pytest.fixture(
    scope="module", params=[name if name == "fake" else pytest.param(name, marks=pytest.mark.libero) for name in SUITES]
)
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    env = make_environment(request.param, "wpray")
    yield Cell(request.param, env)
    env.close()


def _actions(steps: int, seed: int = 0) -> FloatArray:
    """Smooth motion with a gripper that opens and closes."""
    rng = np.random.default_rng(seed)
    return np.clip(np.cumsum(rng.uniform(-0.3, 0.3, (steps, 7)), axis=0), -1, 1)


def _run(cell: Cell, trial: Trial, steps: int = 12, look: bool = True) -> Episode:
    cell.begin(trial)
    states, done, seen = [], [], []
    for index, action in enumerate(_actions(steps)):
        if look and index % 6 == 0:
            seen.append(cell.env.observe(EVERYTHING))
        done.append(cell.env.step(action).terminated)
        states.append(cell.env.state())
    return Episode(cell.env.scene(), states, done, seen)


def _run_alone(suite: str, task_id: int, trial: int) -> Episode:
    """For a process of its own, in which nothing ran before."""
    cell = Cell(suite, make_environment(suite, "wpray"))
    return _run(cell, cell.trial(task_id, trial))


def _assert_equal(first: object, second: object) -> None:
    """Bit by bit, through dataclasses, mappings and sequences."""
    assert type(first) is type(second)
    if hasattr(first, "__dataclass_fields__"):
        for field in fields(first):  # type: ignore[arg-type]
            _assert_equal(getattr(first, field.name), getattr(second, field.name))
    elif isinstance(first, Mapping):
        assert list(first) == list(second)  # type: ignore[call-overload]
        _assert_equal(tuple(first.values()), tuple(second.values()))  # type: ignore[attr-defined]
    elif isinstance(first, Sequence) and not isinstance(first, str):
        assert len(first) == len(second)  # type: ignore[arg-type]
        for a, b in zip(first, second, strict=True):  # type: ignore[call-overload]
            _assert_equal(a, b)
    else:
        assert np.array_equal(first, second)  # type: ignore[arg-type]


def test_loading_the_current_task_again_returns_at_once_and_disturbs_nothing(cell: Cell) -> None:
    trial = cell.trial()
    cell.begin(trial)
    cell.env.step(_actions(1)[0])
    before, began = cell.env.state(), time.process_time()
    cell.env.load(cell.trial().task)
    assert time.process_time() - began < 0.05
    _assert_equal(cell.env.state(), before)


def test_a_reset_is_observed_without_a_step_and_only_as_asked(cell: Cell) -> None:
    cell.begin(cell.trial())
    seen = cell.env.observe(BLIND)
    assert (seen.base_image, seen.wrist_image, seen.privileged) == (None, None, None)
    assert (seen.proprio.shape, seen.proprio.dtype) == ((8,), np.float64)
    assert np.isfinite(seen.proprio).all()
    assert cell.env.render_s == 0


def test_images_are_what_a_policy_takes(cell: Cell) -> None:
    cell.begin(cell.trial())
    before = cell.env.observe(SEEING)
    for action in _actions(10):
        cell.env.step(action)
    after = cell.env.observe(SEEING)
    for name in ("base_image", "wrist_image"):
        image = getattr(after, name)
        assert (image.shape, image.dtype) == ((224, 224, 3), np.uint8)
        assert not np.array_equal(image, getattr(before, name))


def test_only_looking_at_images_renders(cell: Cell) -> None:
    cell.begin(cell.trial())
    for action in _actions(3):
        cell.env.step(action)
        cell.env.observe(TRUTH)
        cell.env.state()
    assert cell.env.render_s == 0
    cell.env.observe(SEEING)
    once = cell.env.render_s
    assert once > 0
    cell.env.step(_actions(1)[0])
    assert cell.env.render_s == once
    cell.env.observe(SEEING)
    assert cell.env.render_s > once
    cell.env.reset(cell.trial())
    assert cell.env.render_s == 0


def test_looking_changes_nothing(cell: Cell) -> None:
    blind, looking = _run(cell, cell.trial(), look=False), _run(cell, cell.trial(), look=True)
    _assert_equal(blind.states, looking.states)


def test_a_state_agrees_with_the_observation_and_keeps_its_shapes(cell: Cell) -> None:
    cell.begin(cell.trial())
    first = cell.env.state()
    step = cell.env.step(_actions(1)[0])
    state, seen = cell.env.state(), cell.env.observe(BLIND)
    assert (type(step.terminated), type(step.truncated), type(step.reward)) == (bool, bool, float)
    assert np.array_equal(state.eef_pos, seen.proprio[:3])
    assert np.array_equal(state.gripper_qpos, seen.proprio[6:])
    assert np.linalg.norm(state.eef_quat) == pytest.approx(1)
    assert state.render_site_alpha.dtype == np.float32
    for field in fields(SimState):
        array = getattr(state, field.name)
        assert array.ndim == 1 and array.shape == getattr(first, field.name).shape
        assert field.name == "render_site_alpha" or array.dtype == np.float64


def test_what_was_handed_out_is_not_overwritten_and_actions_are_left_alone(cell: Cell) -> None:
    cell.begin(cell.trial())
    state, scene, seen = cell.env.state(), cell.env.scene(), cell.env.observe(EVERYTHING)
    copies = [np.array(part) for part in (state.qpos, state.render_qpos, scene.body_pos, seen.proprio, seen.base_image)]
    actions = _actions(5)
    for action in actions:
        cell.env.step(action)
    cell.env.reset(cell.trial(trial=1))
    cell.env.observe(EVERYTHING)
    _assert_equal([state.qpos, state.render_qpos, scene.body_pos, seen.proprio, seen.base_image], copies)
    assert np.array_equal(actions, _actions(5))


def test_privileged_state_describes_the_scene(cell: Cell) -> None:
    cell.begin(cell.trial())
    truth = cell.env.observe(TRUTH).privileged
    assert truth is not None
    names = [thing.name for thing in truth.objects]
    assert len(names) == len(set(names))
    assert truth.target in names
    assert np.allclose(truth.eef_rotation @ truth.eef_rotation.T, np.eye(3))
    assert np.linalg.norm(truth.finger_axis) == pytest.approx(1)
    for thing in truth.objects:
        assert thing.bottom < thing.top
        assert thing.footprint.ndim == 2 and thing.footprint.shape[1] == 2


def test_a_recorded_state_renders_to_the_pixels_that_the_policy_saw_and_disturbs_nothing(cell: Cell) -> None:
    from wpray.benchmarks.views import policy_view

    episode = _run(cell, cell.trial(trial=1))
    cell.begin(cell.trial(trial=2))  # another trial's fixtures and poses
    for action in _actions(3, seed=1):
        cell.env.step(action)
    under_way = cell.env.scene(), cell.env.state(), cell.env.observe(SEEING)
    for camera, name in CAMERAS:
        picture = cell.env.render(episode.states[5], episode.scene, camera=camera, height=256, width=256)
        assert np.array_equal(policy_view(picture[::-1]), getattr(episode.seen[1], name))
        small = cell.env.render(episode.states[5], episode.scene, camera=camera, height=60, width=80)
        assert (small.shape, small.dtype) == ((60, 80, 3), np.uint8)
    _assert_equal((cell.env.scene(), cell.env.state(), cell.env.observe(SEEING)), under_way)


def test_a_trial_depends_on_nothing_that_ran_before_it(cell: Cell) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        alone = fresh.submit(_run_alone, cell.suite, 1, 2).result()
    for before in (cell.trial(0, 5), cell.trial(1, 7), cell.trial(1, 2)):
        _run(cell, before, steps=15, look=before.init_state == 7)
    _assert_equal(_run(cell, cell.trial(1, 2)), alone)


def test_trials_differ_by_their_initial_state(cell: Cell) -> None:
    first, second = (_run(cell, cell.trial(trial=trial), steps=1, look=False) for trial in (0, 1))
    assert not np.array_equal(first.states[0].qpos, second.states[0].qpos)


def test_a_trial_that_is_not_solved_is_not_done(cell: Cell) -> None:
    cell.begin(cell.trial())
    assert [cell.env.step(np.zeros(7)).terminated for _ in range(10)] == [False] * 10


def test_progress_has_the_same_names_at_every_step_and_is_a_share(cell: Cell) -> None:
    cell.begin(cell.trial())
    steps = [cell.env.step(action) for action in _actions(5)]
    for step in steps:
        assert list(step.progress) == list(steps[0].progress)
        assert all(type(value) is float and 0 <= value <= 1 for value in step.progress.values())


@pytest.mark.libero
def test_a_goal_of_two_objects_tells_of_each() -> None:
    env = make_environment("libero_10", "wpray")
    trial = Trial(list_tasks("libero_10")[0], 0, seed=0)
    env.load(trial.task)
    env.reset(trial)
    step = env.step(np.zeros(7))
    env.close()
    basket = "basket_1_contain_region"
    assert step.progress == {f"in({thing}, {basket})": 0.0 for thing in ("alphabet_soup_1", "tomato_sauce_1")}


def test_after_a_close_a_task_can_be_loaded_again(cell: Cell) -> None:
    before = _run(cell, cell.trial())
    cell.env.close()
    cell.env.close()
    _assert_equal(_run(cell, cell.trial()), before)


@pytest.mark.libero
def test_the_seed_moves_fixtures_and_the_serial_protocol_is_independent_of_order_too() -> None:
    serial = Cell("libero_spatial", make_environment("libero_spatial", "serial"))
    ours = Cell("libero_spatial", make_environment("libero_spatial", "wpray"))
    in_turn = [_run(serial, serial.trial(5, trial), steps=2, look=False) for trial in range(3)]
    serial.env.close()
    directly = _run(serial, serial.trial(5, 2), steps=2, look=False)
    _assert_equal(directly, in_turn[2])
    _assert_equal(_run(serial, serial.trial(5, 0), steps=2, look=False), in_turn[0])
    serial.env.close()
    poses = [_run(ours, ours.trial(5, 0, seed), steps=1, look=False).scene.body_pos for seed in (0, 1)]
    ours.env.close()
    assert not np.array_equal(*poses)
    assert not np.array_equal(in_turn[0].scene.body_pos, in_turn[1].scene.body_pos)
