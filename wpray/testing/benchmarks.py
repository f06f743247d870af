"""Promises of a benchmark, as checks that run against any of them: LIBERO and the fake one keep them, too.

from wpray.testing import check_benchmark

def test_my_benchmark() -> None:
    check_benchmark("my_package.benchmark:MyBenchmark", suite="my_suite")
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast

import numpy as np

from wpray.benchmarks.base import Benchmark, Environment, RemotelyDrawn
from wpray.benchmarks.declarations import declarations
from wpray.benchmarks.drawing import LocalDrawClient
from wpray.benchmarks.factory import load_benchmark
from wpray.errors import BadInputError
from wpray.types import (
    DrawRequest,
    FloatArray,
    ImageArray,
    ImageSpec,
    Observation,
    ObservationSpec,
    SceneState,
    State,
    Step,
    Task,
    Trial,
)

_FILE_NAME = re.compile(r"[A-Za-z0-9_.+=,-]{1,200}")
_STEPS = 12
_OBSERVE_EVERY = 6


@dataclass(frozen=True)
class BenchmarkCase:
    """A benchmark's suite and one environment of it."""

    benchmark: Benchmark
    suite: str
    env: Environment
    tasks: tuple[Task, ...]

    @property
    def offered(self) -> ObservationSpec:
        """Specification of all that environments can show."""
        return self.benchmark.observation_spec(self.suite)

    @property
    def everything(self) -> ObservationSpec:
        """Specification of all that can be shown, as policies usually see it."""
        return replace(self.offered, cameras=dict.fromkeys(self.offered.cameras, ImageSpec()))

    @property
    def blind(self) -> ObservationSpec:
        """Specification of all that can be shown without rendering."""
        return replace(self.offered, cameras={})

    def trial(self, task: int = 0, trial: int = 0, seed: int = 0) -> Trial:
        """Return a trial; where the suite has fewer tasks or initial states, of the last one."""
        chosen = self.tasks[min(task, len(self.tasks) - 1)]
        return Trial(chosen, min(trial, chosen.num_trials - 1), seed)

    def begin(self, trial: Trial) -> None:
        """Bring the environment to the trial's start."""
        self.env.load(trial.task)
        self.env.reset(trial)

    def actions(self, steps: int, seed: int = 0) -> FloatArray:
        """Return smooth motion, (steps, action width)."""
        spec, rng = self.benchmark.action_spec(self.suite), np.random.default_rng(seed)
        return spec.scaled(np.clip(np.cumsum(rng.uniform(-0.3, 0.3, (steps, spec.dim)), axis=0), -1, 1))


@dataclass(frozen=True)
class CheckedEpisode:
    """Outcome of a trial: everything that must not depend on what ran before."""

    scene: SceneState | None
    states: list[State] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)


def check_benchmark(benchmark: Benchmark | type[Benchmark] | str, suite: str) -> None:
    """Check that a benchmark keeps its promises on `suite`; takes seconds, or minutes where scenes compile slowly.

    `benchmark`: an instance, a class, an installed name, or `PACKAGE.MODULE:CLASS`. Needs `if __name__ == "__main__"`
    in scripts, because one check runs in a process of its own. Raises AssertionError that names every broken promise.
    """
    broken = []
    with case_of(benchmark, suite) as case:
        for promise in PROMISES:
            try:
                promise(case)
            except AssertionError as error:
                broken.append(f"{promise.__name__}: {str(error).strip() or 'does not hold'}")
    if broken:
        raise AssertionError(f"{suite} breaks {len(broken)} of {len(PROMISES)} promises:\n" + "\n".join(broken))


@contextmanager
def case_of(benchmark: Benchmark | type[Benchmark] | str, suite: str) -> Iterator[BenchmarkCase]:
    """Make an environment of the suite; close it at the end."""
    made = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    found: Benchmark = made() if isinstance(made, type) else made
    name = found.canonical(suite)
    tasks = found.tasks(name, None, found.instruction_source(name, "auto"))
    env = found.make_environment(name, "wpray")
    try:
        yield BenchmarkCase(found, name, env, tasks)
    finally:
        env.close()


def run(case: BenchmarkCase, trial: Trial, steps: int = _STEPS, observe: bool = True) -> CheckedEpisode:
    """Run some steps of a trial; `observe`: look at everything now and then."""
    case.begin(trial)
    episode = CheckedEpisode(case.env.scene())
    for index, action in enumerate(case.actions(steps)):
        if observe and index % _OBSERVE_EVERY == 0:
            episode.seen.append(case.env.observe(case.everything))
        episode.steps.append(case.env.step(action))
        episode.states.append(case.env.state())
    return episode


def assert_equal(first: object, second: object, where: str = "value") -> None:
    """Compare bit by bit, through dataclasses, mappings and sequences."""
    assert type(first) is type(second), f"{where}: {type(first).__name__} and {type(second).__name__}"
    if hasattr(first, "__dataclass_fields__"):
        for part in fields(first):  # type: ignore[arg-type]
            assert_equal(getattr(first, part.name), getattr(second, part.name), f"{where}.{part.name}")
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        assert list(first) == list(second), f"{where}: other names"
        for name in first:
            assert_equal(first[name], second[name], f"{where}[{name!r}]")
    elif isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str):
        assert len(first) == len(second), f"{where}: {len(first)} and {len(second)} of them"
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert np.array_equal(first, second), f"{where} differs"  # type: ignore[arg-type]


def tasks_are_listed_in_order_with_names_for_files(case: BenchmarkCase) -> None:
    """Check the tasks."""
    assert [task.task_id for task in case.tasks] == list(range(len(case.tasks))), "task_id is not the place in the list"
    assert {task.suite for task in case.tasks} == {case.suite}, "task.suite is not the suite's canonical name"
    names = [task.name for task in case.tasks]
    assert len(set(names)) == len(names), "two tasks have one name"
    for task in case.tasks:
        assert _FILE_NAME.fullmatch(task.name), f"{task.name!r} cannot stand in a file's name"
        assert task.instruction and task.num_trials > 0 and task.max_steps > 0, f"{task.name}: an empty or zero field"
    source = case.benchmark.instruction_source(case.suite, "auto")
    limited = case.benchmark.tasks(case.suite, 7, source)
    assert {task.max_steps for task in limited} == {7}, "max_steps does not replace the tasks' own limit"


def suites_have_one_name_and_others_are_refused(case: BenchmarkCase) -> None:
    """Check the suite's names."""
    benchmark = case.benchmark
    assert benchmark.canonical(benchmark.canonical(case.suite)) == case.suite, "canonical(canonical(x)) is another name"
    try:
        benchmark.tasks("no_such_suite", None, "file_name")
    except BadInputError:
        return
    raise AssertionError("tasks('no_such_suite') raises no BadInputError")


def cameras_of_videos_are_among_the_cameras(case: BenchmarkCase) -> None:
    """Check the names of cameras."""
    lacking = set(case.benchmark.video_cameras) - set(case.benchmark.cameras)
    assert not lacking, f"video_cameras names {sorted(lacking)}, cameras does not"


def actions_have_bounds_and_one_that_stands_still(case: BenchmarkCase) -> None:
    """Check the specification of actions."""
    spec = case.benchmark.action_spec(case.suite)
    assert spec.dim > 0, "an action has no number"
    for name in ("low", "high"):
        assert np.shape(getattr(spec, name)) in ((), (spec.dim,)), f"{name} is not one bound or {spec.dim}"
    low, high, still = np.asarray(spec.low), np.asarray(spec.high), spec.stand_still()
    assert np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all(), "low is not below high"
    assert still.shape == (spec.dim,), f"still has {len(still)} numbers, not {spec.dim}"
    assert (low <= still).all() and (still <= high).all(), "still is out of bounds: declare one that is not"
    assert len(spec.names) in (0, spec.dim), f"{len(spec.names)} names of {spec.dim} numbers"


def estimates_and_declarations_are_sound(case: BenchmarkCase) -> None:
    """Check what a run reserves, forecasts and records before and beside its episodes."""
    benchmark, size = case.benchmark, case.benchmark.size(case.suite)
    assert len(case.tasks) <= size.tasks, f"size() estimates {size.tasks} tasks, and there are {len(case.tasks)}"
    longest = max(task.max_steps for task in case.tasks)
    assert longest <= size.max_steps, f"size() estimates {size.max_steps} steps, and a task has {longest}"
    memory = benchmark.env_memory(2**30)
    assert type(memory) is int and memory > 0, f"env_memory() is {memory!r}, no number of bytes"
    assert benchmark.control_hz is None or benchmark.control_hz > 0, "control_hz is no frequency"
    assert benchmark.robot, "robot has no name"
    names = [check.name for check in benchmark.checks()]
    assert len(set(names)) == len(names), "two checks have one name"
    for package in benchmark.decisive_packages((case.suite,)):
        lacking = [path for _, path in package.files if not Path(path).is_file()]
        assert not lacking, f"decisive package {package.name}: {lacking[0]} is no file"
    json.dumps(declarations(benchmark, case.suite))


def loading_the_current_task_again_returns_at_once_and_disturbs_nothing(case: BenchmarkCase) -> None:
    """Check `load`."""
    case.begin(case.trial())
    case.env.step(case.actions(1)[0])
    before, began = case.env.state(), time.process_time()
    case.env.load(case.trial().task)
    assert time.process_time() - began < 0.05, "loading the current task again takes long"
    assert_equal(case.env.state(), before, "state")


def a_reset_is_observed_without_a_step_and_only_as_asked(case: BenchmarkCase) -> None:
    """Check what is seen without cameras."""
    case.begin(case.trial())
    seen = case.env.observe(replace(case.blind, privileged=False))
    assert (dict(seen.images), seen.privileged) == ({}, None), "shows what was not asked for"
    assert seen.proprio.ndim == 1 and seen.proprio.dtype == np.float64, "proprio is no row of float64"
    assert np.isfinite(seen.proprio).all(), "proprio is not finite"
    assert case.env.render_s == 0, "renders without a camera"


def proprio_fields_come_as_asked(case: BenchmarkCase) -> None:
    """Check that every field can be had alone and in any order."""
    case.begin(case.trial())
    parts = {name: case.env.observe(replace(case.blind, proprio=(name,))).proprio for name in case.offered.proprio}
    for names in (case.offered.proprio, case.offered.proprio[::-1]):
        both = case.env.observe(replace(case.blind, proprio=names)).proprio
        assert_equal(both, np.concatenate([parts[name] for name in names]), "proprio")


def images_are_what_a_policy_specifies(case: BenchmarkCase) -> None:
    """Check sizes, and that pictures follow the scene."""
    case.begin(case.trial())
    before = case.env.observe(case.everything)
    for action in case.actions(10):
        case.env.step(action)
    after = case.env.observe(case.everything)
    assert list(after.images) == list(case.offered.cameras), "other cameras than those asked for"
    for role, image in after.images.items():
        assert image.shape == (224, 224, 3) and image.dtype == np.uint8, f"{role}: {image.dtype} of {image.shape}"
        assert not np.array_equal(image, before.images[role]), f"{role} shows no motion"
        for spec in (ImageSpec(48, 64), ImageSpec(48, 64, resize="pad"), ImageSpec(40, 40, False, crop_scale=0.5)):
            (view,) = case.env.observe(replace(case.blind, cameras={role: spec})).images.values()
            assert view.shape == (spec.height, spec.width, 3), f"{role}: {view.shape} for {spec}"


def only_looking_at_images_renders(case: BenchmarkCase) -> None:
    """Check `render_s`."""
    case.begin(case.trial())
    for action in case.actions(3):
        case.env.step(action)
        case.env.observe(case.blind)
        case.env.state()
    assert case.env.render_s == 0, "renders without a camera"
    if not case.offered.cameras:
        return
    case.env.observe(case.everything)
    once = case.env.render_s
    assert once > 0, "render_s does not count"
    case.env.step(case.actions(1)[0])
    assert case.env.render_s == once, "a step renders"
    case.env.reset(case.trial())
    assert case.env.render_s == 0, "a reset does not set render_s to 0"


def looking_changes_nothing(case: BenchmarkCase) -> None:
    """Check that observing leaves the simulation alone."""
    blind, observed = run(case, case.trial(), observe=False), run(case, case.trial(), observe=True)
    assert_equal(blind.states, observed.states, "state")


def a_state_is_what_the_columns_declare(case: BenchmarkCase) -> None:
    """Check what is recorded of a step."""
    case.begin(case.trial())
    first = case.env.state()
    step = case.env.step(case.actions(1)[0])
    assert (type(step.terminated), type(step.truncated), type(step.reward)) == (bool, bool, float), "types of Step"
    state, columns = case.env.state(), case.benchmark.state_columns()
    names = [column.name for column in columns]
    assert list(state) == names, f"state() has {list(state)}, and state_columns() has {names}"
    assert len({"step", "action", *names}) == len(names) + 2, "two columns have one name, or that of step or action"
    for column in columns:
        array, name = state[column.name], column.name
        assert array.ndim == 1 and array.shape == first[name].shape, f"{name} changes its shape"
        assert column.width in (None, len(array)), f"{name} has {len(array)} numbers, not the declared {column.width}"
        assert array.dtype == column.dtype, f"{name} is {array.dtype}, not the declared {column.dtype}"
        assert column.about, f"{name} is not described"


def progress_has_the_same_names_at_every_step(case: BenchmarkCase) -> None:
    """Check `Step.progress`."""
    for step in run(case, case.trial(), observe=False).steps:
        assert not (step.terminated and step.truncated), "an episode ends either with success or without"
        assert np.isfinite(step.reward), "reward is not finite"
        assert all(type(value) is float and np.isfinite(value) for value in step.progress.values()), "no finite floats"
    names = {tuple(step.progress) for step in run(case, case.trial(), observe=False).steps}
    assert len(names) == 1, f"progress has other names at other steps: {sorted(names)}"


def what_was_handed_out_is_not_overwritten_and_actions_are_left_alone(case: BenchmarkCase) -> None:
    """Check that arrays are copies."""
    case.begin(case.trial())
    state, scene, seen = case.env.state(), case.env.scene(), case.env.observe(case.everything)
    fixtures = [] if scene is None else [scene.body_pos, scene.body_quat]
    parts = [*state.values(), *fixtures, seen.proprio, *seen.images.values()]
    copies = [np.array(part) for part in parts]
    actions = case.actions(5)
    for action in actions:
        case.env.step(action)
    case.env.reset(case.trial(trial=1))
    case.env.observe(case.everything), case.env.state(), case.env.scene()
    assert_equal(parts, copies, "what was handed out")
    assert_equal(actions, case.actions(5), "actions")


def privileged_state_describes_the_scene(case: BenchmarkCase) -> None:
    """Check the simulator's truth, where it is offered."""
    case.begin(case.trial())
    truth = case.env.observe(case.blind).privileged
    if not case.offered.privileged:
        assert truth is None, "shows privileged state, which the specification does not offer"
        return
    assert truth is not None, "offers privileged state and shows none"
    names = [thing.name for thing in truth.objects]
    assert len(names) == len(set(names)) and truth.target in names, "objects or target"
    assert np.allclose(truth.eef_rotation @ truth.eef_rotation.T, np.eye(3)), "eef_rotation is no rotation"
    assert abs(np.linalg.norm(truth.finger_axis) - 1) < 1e-6, "finger_axis is no unit vector"
    for thing in truth.objects:
        assert thing.bottom < thing.top and thing.footprint.shape[1:] == (2,), f"geometry of {thing.name}"


def a_recorded_state_renders_to_the_pixels_that_were_seen_and_disturbs_nothing(case: BenchmarkCase) -> None:
    """Check `render`; a benchmark without cameras for videos has none to check."""
    native = replace(case.offered, privileged=False)
    case.begin(case.trial(trial=1))
    scene = case.env.scene()
    case.env.step(case.actions(1)[0])
    state, seen = case.env.state(), case.env.observe(native)
    case.begin(case.trial(trial=2))  # another trial's fixtures and poses
    for action in case.actions(3, seed=1):
        case.env.step(action)
    under_way = case.env.scene(), case.env.state(), case.env.observe(case.everything)
    for camera, (role, spec) in zip(case.benchmark.video_cameras, native.cameras.items(), strict=False):
        picture = case.env.render(state, scene, camera=camera, height=spec.height, width=spec.width)
        assert_equal(picture[::-1], seen.images[role], f"{camera}, rendered from the record,")
        small = case.env.render(state, scene, camera=camera, height=60, width=80)
        assert small.shape == (60, 80, 3) and small.dtype == np.uint8, f"{camera} in another size"
    assert_equal((case.env.scene(), case.env.state(), case.env.observe(case.everything)), under_way, "trial under way")


def a_drawer_draws_what_is_seen(case: BenchmarkCase) -> None:
    """Check the pictures of `make_drawer`'s drawer against those that an environment draws by itself."""
    if not case.benchmark.draws_remotely:
        assert case.benchmark.make_drawer() is None, "make_drawer returns a drawer, and draws_remotely is False"
        return
    trials = [case.trial(), case.trial(1, 1)]
    seen = [run(case, trial, _OBSERVE_EVERY + 1).seen for trial in trials]
    with _remote_case(case) as remote:
        assert_equal([run(remote, trial, _OBSERVE_EVERY + 1).seen for trial in trials], seen, "observation")


def a_trial_depends_on_nothing_that_ran_before_it(case: BenchmarkCase) -> None:
    """Check the promise that results rest on, against a process in which nothing ran before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        alone = fresh.submit(_run_alone, type(case.benchmark), case.suite).result()
    for before in (case.trial(0, 5), case.trial(1, 7), case.trial(1, 2)):
        run(case, before, steps=15, observe=before.init_state == 7)
    assert_equal(run(case, case.trial(1, 2)), alone, "episode")


def trials_differ(case: BenchmarkCase) -> None:
    """Check that initial states differ."""
    if case.tasks[0].num_trials > 1:
        first, second = (run(case, case.trial(trial=trial), steps=1, observe=False) for trial in (0, 1))
        alike = [np.array_equal(first.states[0][name], second.states[0][name]) for name in first.states[0]]
        assert not alike or not all(alike), "the states of two trials begin alike"


def after_a_close_a_task_can_be_loaded_again(case: BenchmarkCase) -> None:
    """Check `close`, which may be called twice."""
    before = run(case, case.trial())
    case.env.close()
    case.env.close()
    assert_equal(run(case, case.trial()), before, "episode")


@contextmanager
def _remote_case(case: BenchmarkCase) -> Iterator[BenchmarkCase]:
    """Make another environment of the suite, which a drawer draws."""
    drawer = case.benchmark.make_drawer()
    assert drawer is not None, "draws_remotely is True, and make_drawer returns None"
    env = case.benchmark.make_environment(case.suite, "wpray")
    try:
        cast(RemotelyDrawn, env).draw_with(_SendingClient(drawer))
        yield replace(case, env=env)
    finally:
        env.close()
        drawer.close()


class _SendingClient(LocalDrawClient):
    """Client whose drawer shares no array with the environment, as in another process."""

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        pickle.dumps(request)  # it can be sent
        return super().draw(copy.deepcopy(request), model_data)


def _run_alone(kind: type[Benchmark], suite: str) -> CheckedEpisode:
    with case_of(kind, suite) as case:
        return run(case, case.trial(1, 2))


PROMISES: tuple[Callable[[BenchmarkCase], None], ...] = (
    tasks_are_listed_in_order_with_names_for_files,
    suites_have_one_name_and_others_are_refused,
    cameras_of_videos_are_among_the_cameras,
    actions_have_bounds_and_one_that_stands_still,
    estimates_and_declarations_are_sound,
    loading_the_current_task_again_returns_at_once_and_disturbs_nothing,
    a_reset_is_observed_without_a_step_and_only_as_asked,
    proprio_fields_come_as_asked,
    images_are_what_a_policy_specifies,
    only_looking_at_images_renders,
    looking_changes_nothing,
    a_state_is_what_the_columns_declare,
    progress_has_the_same_names_at_every_step,
    what_was_handed_out_is_not_overwritten_and_actions_are_left_alone,
    privileged_state_describes_the_scene,
    a_recorded_state_renders_to_the_pixels_that_were_seen_and_disturbs_nothing,
    a_drawer_draws_what_is_seen,
    a_trial_depends_on_nothing_that_ran_before_it,
    trials_differ,
    after_a_close_a_task_can_be_loaded_again,
)
