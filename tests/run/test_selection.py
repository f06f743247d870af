"""Which trials a configuration asks for, and with which initial states."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.benchmarks.init_states_file import read_init_states
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.launch import main as launch
from wpray.provenance.settings import comparable, outcome_fields
from wpray.results import load
from wpray.results.pairing import obstacles
from wpray.run.selection import select

TASKS = fake_tasks()
NAMES = [task.name for task in TASKS]


def _select(**options: Any) -> list[tuple[int, int]]:
    config = Config.model_validate({"task_suite": "fake", **options})
    return [trial.key[1:] for trial in select(config, TASKS).trials]


def test_trials_and_tasks_are_half_open_ranges() -> None:
    assert _select(task_start=8, num_trials_per_task=3, trial_start=1) == [(8, 1), (8, 2), (9, 1), (9, 2)]
    assert _select(task_start=3, task_end=5) == [(3, 0), (4, 0)]
    assert _select(task_end=1000) == [(task, 0) for task in range(10)]
    assert _select(tasks=[4], num_trials_per_task=2, trial_start=1) == [(4, 1)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trial_start": 3, "num_trials_per_task": 3}, "trial_start: 3 leaves no trial of num_trials_per_task 3"),
        ({"task_start": 10}, "fake has no task 10"),
    ],
)
def test_a_choice_of_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        _select(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": [0], "task_start": 1}, "give one of them"),
        ({"task_start": 3, "task_end": 3}, "leaves no task before task_end 3"),
        ({"stop_after_successes": 3, "stop_when": {"half_width": 0.1}}, "exclude each other"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(options)


def _states(path: Path, kind: str, states: dict[str, np.ndarray]) -> Path:
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **states)
        return path.with_suffix(".npz")
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(states, protocol=int(kind[-1])))
        return path
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(rows) for name, rows in states.items()} if kind == "tensors" else states
    torch.save(given, path, _use_new_zipfile_serialization=kind != "torch_older")
    return path


KINDS = ["npz", "pickle2", "pickle4", "pickle5", "torch", "torch_older", "tensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_states_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    states = {NAMES[1]: rng.normal(size=(3, 77)), NAMES[0]: rng.normal(size=(2, 79))}
    found = read_init_states(_states(tmp_path / "states", kind, states))
    assert found.keys() == states.keys()
    assert all(found[name].dtype == np.float64 and found[name].tobytes() == states[name].tobytes() for name in states)


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("how", ["pickle", "torch", "inside an array", "npz"])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path, how: str) -> None:
    path, marker = tmp_path / "states", tmp_path / "was_here"
    evil: Any = {NAMES[0]: _Evil(marker)}
    if how == "inside an array":
        evil = {NAMES[0]: np.array([[_Evil(marker)]], dtype=object)}
    if how == "npz":
        np.savez(path, **{NAMES[0]: np.array([[_Evil(marker)]], dtype=object)})
        path = path.with_suffix(".npz")
    elif how == "torch":
        pytest.importorskip("torch").save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(BadInputError, match=rf"^init_states_file: {re.escape(str(path))}: no initial states"):
        read_init_states(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 cut off",
        pickle.dumps([1, 2]),
        pickle.dumps({}),
        pickle.dumps({3: np.zeros((1, 4))}),
        pickle.dumps({"a": np.zeros(4)}),
        pickle.dumps({"a": np.zeros((0, 4))}),
        pickle.dumps({"a": np.full((1, 4), np.nan)}),
        pickle.dumps({"a": [["x"]]}),
        pickle.dumps({"a": np.zeros((2, 4))})[:-40],
    ],
)
def test_a_file_that_is_no_table_of_states_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "states"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"^init_states_file: .*no initial states by task name \(.*\); give an NPZ"):
        read_init_states(path)


def test_trials_have_the_states_of_their_task_and_no_more_trials_than_states(tmp_path: Path) -> None:
    states = {NAMES[0]: np.arange(8.0).reshape(2, 4), NAMES[1]: np.arange(20.0).reshape(5, 4)}
    file = str(_states(tmp_path / "s", "npz", states))
    config = Config(task_suite="fake", tasks=[0, 1], num_trials_per_task=3, init_states_file=file)
    trials = select(config, TASKS).trials
    assert [trial.key[1:] for trial in trials] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert all(trial.own_state == tuple(states[trial.task.name][trial.init_state]) for trial in trials)
    env = FakeEnvironment()
    env.load(trials[1].task)
    env.reset(trials[1])
    assert env.scene().body_pos[0].tolist() == [6.0, 7.0, 0.0]
    with pytest.raises(BadInputError, match=f"has no states of task 2 \\({NAMES[2]}\\), only of {NAMES[0]}"):
        select(config.model_copy(update={"tasks": [2]}), TASKS)


_RUN = ["--task_suite", "fake", "--tasks", "0", "--num_trials_per_task", "2", "--num_parallel", "1"]
_RUN += ["--video.mode", "none"]


@pytest.mark.ray
def test_a_run_with_states_of_its_own_goes_on_with_the_same_ones_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    file = _states(tmp_path / "s", "npz", {NAMES[0]: rng.uniform(-0.2, 0.2, (3, 4))})
    given = [*_RUN, "--init_states_file", str(file)]
    assert run_command(launch, [*given, "--output_dir", str(tmp_path / "a")]) == 0
    assert run_command(launch, [*_RUN, "--output_dir", str(tmp_path / "b")]) == 0
    first, plain = load(tmp_path / "a"), load(tmp_path / "b")
    assert len(json.loads((tmp_path / "a/run.json").read_text())["init_states"]["sha256"]) == 64
    assert any("init_states_file's content" in text for text in obstacles(first, plain))
    assert first.episodes["num_steps"].to_pylist() != plain.episodes["num_steps"].to_pylist()
    np.savez(file, **{NAMES[0]: rng.uniform(-0.2, 0.2, (3, 4))})
    more = ["--num_trials_per_task", "3", "--output_dir", str(tmp_path / "a")]
    capsys.readouterr()
    assert run_command(launch, [*given, *more]) == 2
    assert "has changed since the run" in capsys.readouterr().err


def test_two_names_of_a_setting_are_comparable() -> None:
    """And a threshold says nothing where nothing is compared with it."""
    a = Config(use_actual_proprio=True, deviation_threshold=0.5)
    b = Config(segment_start_from="actual")
    assert comparable(outcome_fields(a)) == comparable(outcome_fields(b))
    c = b.model_copy(update={"replan_on_deviation": True})
    d = c.model_copy(update={"deviation_threshold": 0.5})
    assert comparable(outcome_fields(c)) != comparable(outcome_fields(d))
    assert comparable(outcome_fields(Config())) != comparable(outcome_fields(b))


@pytest.mark.ray
def test_a_run_ends_its_tasks_at_enough_successes_and_is_finished(tmp_path: Path) -> None:
    """Of trials that all succeed, as many run as successes are wanted; asked again, none is left."""
    given = ["--task_suite", "fake", "--tasks", "0-1", "--num_trials_per_task", "9", "--trial_start", "2"]
    given += ["--stop_after_successes", "2", "--num_parallel", "2", "--video.mode", "none"]
    given += ["--output_dir", str(tmp_path / "run")]
    assert run_command(launch, given) == 0
    found = load(tmp_path / "run")
    rows = found.episodes.select(["task_id", "trial", "status"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [(t, n, "success") for t in (0, 1) for n in (2, 3)]
    assert found.info["state"] == "finished"
    assert found.info["config"]["stop_after_successes"] == 2
    assert {"stop_after_successes", "trial_start"} < found.info["outcome_fields"].keys()
    assert run_command(launch, given) == 0
    assert len(load(tmp_path / "run").episodes) == 4
    assert len(load(tmp_path / "run").info["sessions"]) == 1  # nothing was left to run
