"""Several suites in one run: what the configuration takes, the counts by suite, and a whole run on LIBERO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from wpray.benchmarks.libero.suites import GROUPS
from wpray.cli.command import run_command
from wpray.cli.configuration import read_config, validate
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.results import load
from wpray.results.pairing import obstacles
from wpray.results.statistics import average, stratified
from wpray.results.summary import Tally, log_lines
from wpray.types import Task, TrialKey

FOUR = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]


def _config(**fields: object) -> Config:
    return Config.model_validate({"policy": "noop", **fields})


@pytest.mark.parametrize(
    ("given", "suites"),
    [
        ("libero_all", FOUR),
        ("LIBERO-All", FOUR),
        (["libero_goal", "libero_long"], ["libero_goal", "libero_10"]),
        ("libero_goal, libero_goal_lan", ["libero_goal", "libero_goal_lan"]),
        (["libero_all", "libero_90", "libero_goal"], [*FOUR, "libero_90"]),
        (["libero_goal"], ["libero_goal"]),
    ],
)
def test_suites_are_taken_as_people_name_them(given: object, suites: list[str]) -> None:
    config = _config(task_suite=given)
    assert list(config.suites) == suites
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_one_suite_is_what_it_was() -> None:
    """Its run.json and fingerprint, so that folders of older versions go on."""
    for given in ("libero_goal", ["libero_goal"]):
        fields = outcome_fields(_config(task_suite=given))
        assert fields["task_suite"] == "libero_goal" and "env.instruction" not in fields
        assert fingerprint(_config(task_suite=given)) == fingerprint(_config(task_suite="libero_goal"))


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("libero_goal:0-2,5,libero_10:3", {"libero_goal": [0, 1, 2, 5], "libero_10": [3]}),
        (["libero_long:3"], {"libero_goal": None, "libero_10": [3]}),
        ({"libero_goal": "0-1"}, {"libero_goal": [0, 1], "libero_10": None}),
        ("0,4", {"libero_goal": [0, 4], "libero_10": [0, 4]}),
        (None, {"libero_goal": None, "libero_10": None}),
    ],
)
def test_tasks_may_be_given_by_suite(given: object, ids: dict[str, object]) -> None:
    config = _config(task_suite=["libero_goal", "libero_10"], tasks=given)
    assert {suite: config.tasks_of(suite) for suite in config.suites} == ids


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("libero_goal:300, libero_long:600", {"libero_goal": 300, "libero_10": 600}),
        (["LIBERO-Goal:300"], {"libero_goal": 300, "libero_10": None}),
        ({"libero_10": 600}, {"libero_goal": None, "libero_10": 600}),
        ("77", {"libero_goal": 77, "libero_10": 77}),
        (77, {"libero_goal": 77, "libero_10": 77}),
        (None, {"libero_goal": None, "libero_10": None}),
    ],
)
def test_step_limits_may_be_given_by_suite(given: object, limits: dict[str, object]) -> None:
    config = _config(task_suite=["libero_goal", "libero_10"], env={"max_steps": given})
    assert {suite: config.max_steps_of(suite) for suite in config.suites} == limits
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_step_limits_by_suite_are_read_from_the_command_line() -> None:
    argv = ["--task_suite", "libero_goal,libero_10", "--env.max_steps", "libero_goal:30,libero_long:60"]
    assert read_config([*argv, "--policy", "noop"]).env.max_steps == {"libero_goal": 30, "libero_10": 60}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("libero_90:3", "env.max_steps: names suite libero_90, which task_suite does not"),
        ("libero_goal:0", "greater than 0"),
        ("libero_goal:100001", "less than or equal to 100000"),
        ("libero_goal:many", "valid integer"),
        ("libero_goal:30,40", "env.max_steps: write SUITE:STEPS for each suite"),
        ({"libero_goal": True}, "env.max_steps: must not be true or false"),
    ],
)
def test_a_wrong_step_limit_is_one_line(given: object, reason: str) -> None:
    with pytest.raises(BadInputError) as caught:
        validate({"task_suite": "libero_goal", "policy": "noop", "env": {"max_steps": given}})
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("env.max_steps")


@pytest.mark.parametrize(
    "fields",
    [
        {"task_suite": []},
        {"task_suite": ["libero_goal", 3]},
        {"task_suite": ["fake", "libero_goal"]},
        {"tasks": "libero_10:0"},
        {"tasks": {"libero_object": []}},
        {"tasks": {"libero_object": [-1]}},
        {"tasks": "libero_object:0-"},
    ],
)
def test_what_fits_no_suite_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _config(**fields)


def _task(suite: str, task_id: int) -> Task:
    return Task(suite, task_id, "same_name", "do it", 50, 100)


def test_the_log_counts_by_suite_and_averages_over_them() -> None:
    tasks = [_task(suite, task_id) for suite in "ab" for task_id in range(2)]
    tally = Tally.planned((task, 2) for task in tasks)
    for task in tasks:
        for trial in range(2):
            tally.add(TrialKey(task.suite, task.task_id, trial), "success" if task.suite == "a" else "failure", 7)
    assert (
        tally.overall == average([[(2, 2), (2, 2)], [(0, 2), (0, 2)]]) == stratified([(2, 2), (2, 2), (0, 2), (0, 2)])
    )
    lines = log_lines(tally)
    assert lines[0] == "Task 0 same_name (a): 100.00% (2/2)"
    assert lines[-3:] == ["Suite a: 100.00% (4/4)", "Suite b: 0.00% (0/4)", "Overall success rate: 50.00% (4/8)"]


def test_a_suite_without_an_outcome_yet_does_not_hide_the_others() -> None:
    tally = Tally.planned([(_task("a", 0), 2), (_task("b", 0), 2)])
    tally.add(TrialKey("a", 0, 0), "success", 7)
    assert tally.overall.trials == 1


@pytest.mark.libero
def test_two_suites_are_one_run(tmp_path: Path) -> None:
    from wpray.launch import main

    argv = ["--task_suite", "libero_goal,libero_goal_lan", "--tasks", "libero_goal:0-1,libero_goal_lan:0"]
    argv += [
        "--policy",
        "noop",
        "--env.max_steps",
        "libero_goal:2,libero_goal_lan:3",
        "--num_steps_wait",
        "0",
        "--output_dir",
        str(tmp_path),
    ]
    assert run_command(main, argv) == 0
    run = load(tmp_path)
    rows = run.episodes.to_pylist()
    keys = [(row["suite"], row["task_id"]) for row in rows]
    assert keys == [("libero_goal", 0), ("libero_goal", 1), ("libero_goal_lan", 0)]
    assert [row["num_steps"] for row in rows] == [2, 2, 3]
    assert rows[0]["task_name"] == rows[2]["task_name"] and rows[0]["instruction"] != rows[2]["instruction"]
    paths = [run.video(row["video_path"]) for row in rows]
    assert len({path for path in paths if path is not None and path.stat().st_size}) == 3
    page = (tmp_path / "report.html").read_text()
    assert "average over 2 suites" in page and "libero_goal_lan 0" in page
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["instruction_source"] == {"libero_goal": "file_name", "libero_goal_lan": "bddl"}
    before = run.episodes
    assert run_command(main, argv) == 0  # nothing is left to do
    assert load(tmp_path).episodes.equals(before)


def test_a_run_of_several_suites_is_compared_with_a_run_of_one(tmp_path: Path) -> None:
    from tests.results.recorded import write_run

    for name, config in (("a", _config(task_suite="libero_all")), ("b", _config(task_suite="libero_goal"))):
        write_run(tmp_path / name, [[True]], outcome_fields=outcome_fields(config))
    assert not obstacles(load(tmp_path / "a"), load(tmp_path / "b"))
    limits = {"max_steps": {"libero_goal": 300, "libero_10": 600}}
    for name, env in (("d", limits), ("e", {"max_steps": 300})):
        config = _config(task_suite=["libero_goal", "libero_10"] if name == "d" else "libero_goal", env=env)
        write_run(tmp_path / name, [[True]], outcome_fields=outcome_fields(config))
    assert not obstacles(load(tmp_path / "d"), load(tmp_path / "e"))
    assert obstacles(load(tmp_path / "d"), load(tmp_path / "b")) == ["env.max_steps (300 in A, default in B)"]
    other = _config(task_suite=["libero_10", "libero_10_lan"])
    write_run(tmp_path / "c", [[True]], outcome_fields=outcome_fields(other))
    assert not obstacles(load(tmp_path / "a"), load(tmp_path / "c"))
    assert any("task_suite" in text for text in obstacles(load(tmp_path / "b"), load(tmp_path / "c")))


def test_the_group_of_four_is_the_suites_of_a_papers_table() -> None:
    assert list(GROUPS["libero_all"]) == FOUR
