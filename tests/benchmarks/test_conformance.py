"""Our own benchmarks keep the promises that `wpray.testing` checks, and those that break one are found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.benchmarks.fake.benchmark import FakeBenchmark
from wpray.benchmarks.fake.environment import FakeEnvironment
from wpray.testing import check_benchmark
from wpray.testing.benchmarks import PROMISES, BenchmarkCase, assert_equal, case_of, run
from wpray.types import FloatArray, Observation, ObservationSpec, State, Step, Trial

SUITES = ("fake", "libero_spatial")  # the real one with fixtures that each reset places anew


@pytest.fixture(
    scope="module", params=[name if name == "fake" else pytest.param(name, marks=pytest.mark.libero) for name in SUITES]
)
def case(request: pytest.FixtureRequest) -> Iterator[BenchmarkCase]:
    with case_of("fake" if request.param == "fake" else "libero", request.param) as made:
        yield made


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_it_keeps_the_promise(case: BenchmarkCase, promise: Callable[[BenchmarkCase], None]) -> None:
    promise(case)


def test_a_state_agrees_with_the_observation(case: BenchmarkCase) -> None:
    case.begin(case.trial())
    case.env.step(case.actions(1)[0])
    state, seen = case.env.state(), case.env.observe(ObservationSpec(cameras={}))
    assert np.array_equal(state["eef_pos"], seen.proprio[:3])
    assert np.array_equal(state["gripper_qpos"], seen.proprio[6:])
    assert abs(np.linalg.norm(state["eef_quat"]) - 1) < 1e-6


def test_a_trial_that_is_not_solved_is_not_done(case: BenchmarkCase) -> None:
    case.begin(case.trial())
    steps = [case.env.step(np.zeros(7)) for _ in range(10)]
    assert not any(step.terminated or step.truncated for step in steps)


def test_the_fake_benchmark_keeps_all_of_them() -> None:
    check_benchmark("fake", "fake")


class _Remembers(FakeEnvironment):
    """Starts a trial with the speed that the hand had."""

    def reset(self, trial: Trial) -> None:
        before = getattr(self, "_velocity", np.zeros(3))
        super().reset(trial)
        self._velocity = before


class _Shares(FakeEnvironment):
    """Hands out the array that it works on."""

    _qpos = np.zeros(6)

    def state(self) -> State:
        found = super().state()
        self._qpos[:] = found["qpos"]
        return {**found, "qpos": self._qpos}


class _Undeclared(FakeEnvironment):
    """Records more than is declared."""

    def state(self) -> State:
        return {**super().state(), "speed": self._velocity.copy()}


class _Renders(FakeEnvironment):
    """Renders at every step."""

    def step(self, action: FloatArray) -> Step:
        self.render_s += 1
        return super().step(action)


class _Moves(FakeEnvironment):
    """Moves the hand when it is looked at."""

    def observe(self, spec: ObservationSpec) -> Observation:
        self._hand = self._hand + 1e-12
        return super().observe(spec)


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (_Remembers, "a_trial_depends_on_nothing_that_ran_before_it"),
        (_Shares, "what_was_handed_out_is_not_overwritten_and_actions_are_left_alone"),
        (_Undeclared, "a_state_is_what_the_columns_declare"),
        (_Renders, "only_looking_at_images_renders"),
        (_Moves, "looking_changes_nothing"),
    ],
)
def test_a_broken_promise_is_named(kind: type[FakeEnvironment], promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBenchmark, "make_environment", lambda *_: kind())
    with pytest.raises(AssertionError, match=promise):
        check_benchmark(FakeBenchmark, "fake")


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


@pytest.mark.libero
def test_the_seed_moves_fixtures_and_the_serial_protocol_is_independent_of_order_too() -> None:
    with case_of("libero", "libero_spatial") as ours:
        serial = BenchmarkCase(ours.benchmark, ours.suite, make_environment(ours.suite, "serial"), ours.tasks)
        in_turn = [run(serial, serial.trial(5, trial), steps=2, observe=False) for trial in range(3)]
        serial.env.close()
        assert_equal(run(serial, serial.trial(5, 2), steps=2, observe=False), in_turn[2])
        assert_equal(run(serial, serial.trial(5, 0), steps=2, observe=False), in_turn[0])
        serial.env.close()
        poses = [run(ours, ours.trial(5, 0, seed), steps=1, observe=False).scene.body_pos for seed in (0, 1)]
    assert not np.array_equal(*poses)
    assert not np.array_equal(in_turn[0].scene.body_pos, in_turn[1].scene.body_pos)
