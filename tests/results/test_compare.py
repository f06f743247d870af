"""Paired comparison: statistics against statsmodels and simulation, the command against made runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.results.recorded import write_run
from wpray import compare as command
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import outcome_fields
from wpray.results import load
from wpray.results.paired import PairCounts, difference_interval, mcnemar_p, mcnemar_power, trials_needed
from wpray.results.pairing import obstacles

REAL_VERSIONS = {"mujoco": "3.3.2", "robosuite": "1.4.0", "libero": "libero 1"}


@pytest.mark.parametrize("cells", [(430, 40, 12, 18), (5, 0, 6, 1), (0, 3, 3, 0), (10, 0, 0, 0), (900, 60, 38, 2)])
def test_the_exact_test_is_statsmodels(cells: tuple[int, int, int, int]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    both, only_a, only_b, neither = cells
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert mcnemar_p(PairCounts(*cells)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rates", [(0.85, 0.05, 0.05), (0.6, 0.2, 0.1), (0.9, 0.08, 0.01), (0.98, 0.01, 0.01)])
@pytest.mark.parametrize("trials", [20, 100, 500])
def test_the_difference_interval_covers_what_it_should(rates: tuple[float, float, float], trials: int) -> None:
    rng = np.random.default_rng(trials)
    truth = rates[2] - rates[1]
    draws = rng.multinomial(trials, [*rates, 1 - sum(rates)], size=3000)
    intervals = [difference_interval(PairCounts(*map(int, draw))) for draw in draws]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered >= 0.935
    assert covered <= 0.97 or trials * (rates[1] + rates[2]) < 20  # few flips: wide, never too narrow


@pytest.mark.parametrize(("difference", "discordant", "trials"), [(0.1, 0.2, 160), (0.05, 0.05, 60), (0.03, 0.3, 900)])
def test_power_is_what_simulation_finds(difference: float, discordant: float, trials: int) -> None:
    rng = np.random.default_rng(0)
    cells = [0.7, (discordant - difference) / 2, (discordant + difference) / 2]
    draws = rng.multinomial(trials, [*cells, 1 - sum(cells)], size=4000)
    found = np.mean([mcnemar_p(PairCounts(*map(int, draw))) <= 0.05 for draw in draws])
    assert mcnemar_power(trials, difference, discordant) == pytest.approx(found, abs=0.025)
    needed = trials_needed(difference, discordant)
    assert needed is not None
    assert mcnemar_power(needed, difference, discordant) >= 0.8 > mcnemar_power(needed // 2, difference, discordant)


def test_power_knows_its_limits() -> None:
    assert trials_needed(1e-5, 0.5) is None
    assert trials_needed(0.3, 0.1) == trials_needed(0.3, 0.3)  # as many flips as the difference needs, at least


def test_a_handicap_of_ten_points_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(7)
    reference = rng.random((10, 40)) < 0.95
    handicapped = reference & (rng.random((10, 40)) >= 0.1)
    for name, outcomes in (("a", reference), ("b", handicapped)):
        write_run(tmp_path / name, [[bool(x) for x in row] for row in outcomes])
    numbers = tmp_path / "numbers.json"
    argv = [str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(numbers), "--power", "5"]
    assert run_command(command.main, argv) == 0
    found = json.loads(numbers.read_text())
    only_a = int((reference & ~handicapped).sum())
    table = [[int(handicapped.sum()), only_a], [0, int((~reference).sum())]]
    assert found["mcnemar_p"] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert found["mcnemar_p"] < 0.001
    assert found["interval_95"][0] <= -0.1 * 0.95 <= found["interval_95"][1] < 0
    assert len(found["flipped"]) == only_a
    shown = capsys.readouterr().out
    assert "B is worse than A" in shown and "To show a difference of 5 points" in shown
    assert f"... and {only_a - 20} more" in shown


def test_errors_and_trials_of_one_run_alone_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [[True, None, True, True]])
    write_run(tmp_path / "b", [[False, True, True], [True]])
    comparison = command.compare(command.load(tmp_path / "a"), command.load(tmp_path / "b"))
    assert comparison.counts == PairCounts(both=1, only_a=1, only_b=0, neither=0)
    assert (comparison.errors, comparison.only_in_a, comparison.only_in_b) == (1, 1, 1)


def test_flipped_trials_link_to_their_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wpray.results.merge import merge
    from wpray.results.videos import VideoFolder
    from wpray.results.writer import RunFolder

    write_run(tmp_path / "a", [[True, True]])
    write_run(tmp_path / "b", [[True, False]])
    for run, status in (("a", "success"), ("b", "failure")):
        videos = VideoFolder.of(tmp_path / run, None)
        videos.path.mkdir()
        (videos.path / f"rollout_move_the_cube_0_t1_{status}.mp4").touch()
        merge(RunFolder(tmp_path / run), videos)
    assert command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out.splitlines()
    flip = shown.index("task 0 trial 1: A success, B failure")
    assert shown[flip + 1] == f"    A {tmp_path}/a/videos/rollout_move_the_cube_0_t1_success.mp4"
    assert shown[flip + 2] == f"    B {tmp_path}/b/videos/rollout_move_the_cube_0_t1_failure.mp4"


def test_a_narrow_terminal_cuts_instructions_not_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recorded = Path(__file__).parents[2] / "notebooks" / "data"
    assert command.main([str(recorded / "scripted"), str(recorded / "handicapped")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "pick up" in line]
    assert [row[0] for row in rows] == [str(task) for task in range(10)]
    assert rows[0][-6:] == ["3", "100.0%", "66.7%", "-33.3", "1", "0"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 7}, r"seed \(0 in A, 7 in B\)"),
        ({"hosts": {"h": {"versions": {**REAL_VERSIONS, "mujoco": "3.4.0"}, "renderer": "egl"}}}, r"mujoco \(3\.3\.2"),
        ({"outcome_fields": {"env.instruction": "bddl"}}, r"env\.instruction \(file_name in A, bddl in B\)"),
        ({"outcome_fields": {"env.protocol": "serial"}}, r"env\.protocol \(wpray in A, serial in B\)"),
    ],
)
def test_runs_that_are_not_pairs_are_refused_unless_told(
    tmp_path: Path, changes: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", [[True, True]], hosts={"h": {"versions": REAL_VERSIONS, "renderer": "osmesa"}})
    changes = {"hosts": {"h": {"versions": REAL_VERSIONS, "renderer": "osmesa"}}, **changes}
    write_run(tmp_path / "b", [[True, False]], **changes)
    argv = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(BadInputError, match=reason):
        command.main(argv)
    assert command.main([*argv, "--anyway"]) == 0
    assert "the runs differ in" in capsys.readouterr().out


_OPTIONS: list[dict[str, Any]] = [
    {"trial_start": 1, "num_trials_per_task": 2},
    {"stop_after_successes": 3},
    {"max_segments_per_replan": 2},
    {"segment_start_from": "actual"},
    {"use_actual_proprio": True},
    {"strict_step_budget": False},
    {"stop_on_d0": True},
    {"replan_on_deviation": True},
    {"temperature": 0.5},
    {"forbid_terminal_first_waypoint": True},
    {"center_crop": True, "center_crop_scale": 0.9},
    {"eval_seed": 7},
    {"vlm_max_token_len": 320},
    {"latency": {"extra_ms": 100}},
]


@pytest.mark.parametrize("options", _OPTIONS, ids=lambda options: next(iter(options)))
def test_runs_with_another_evaluation_option_are_refused_by_name(tmp_path: Path, options: dict[str, Any]) -> None:
    fake: dict[str, Any] = {"task_suite": "fake", "policy": "scripted"}
    write_run(tmp_path / "a", [[True, True]])
    write_run(tmp_path / "b", [[True, True]], outcome_fields=outcome_fields(Config.model_validate(fake | options)))
    name = (
        next(iter(options)).replace("use_actual_proprio", "segment_start_from").replace("latency", "latency.extra_ms")
    )
    (found,) = [text for text in obstacles(load(tmp_path / "a"), load(tmp_path / "b")) if text.startswith(f"{name} (")]
    assert " in A, " in found and " in B)" in found


def test_options_that_say_the_same_or_nothing_are_no_obstacle(tmp_path: Path) -> None:
    for name, options in (
        ("a", {"use_actual_proprio": True, "deviation_threshold": 0.3}),
        ("b", {"segment_start_from": "actual", "deviation_metric": "linf", "tasks": [0]}),
    ):
        config = Config.model_validate({"task_suite": "fake", "policy": "scripted", **options})
        write_run(tmp_path / name, [[True, True]], outcome_fields=outcome_fields(config))
    assert obstacles(load(tmp_path / "a"), load(tmp_path / "b")) == []


ORIGINS = {"libero": {"kind": "distribution", "source": "libero 1", "digest": "1a" * 32}}


def test_runs_on_other_files_of_one_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"libero": ORIGINS["libero"] | {"digest": "2b" * 32, "source": "path /x/LIBERO"}}
    for name, origins in (("old", None), ("a", ORIGINS), ("b", other)):
        changes = {} if origins is None else {"origins": origins}
        write_run(tmp_path / name, [[True, True]], hosts={"h": {"versions": REAL_VERSIONS}}, **changes)
    refusal = r"libero files \(1a1a1a1a1a1a \(libero 1\) in A, 2b2b2b2b2b2b \(path /x/LIBERO\) in B\)"
    with pytest.raises(BadInputError, match=refusal):
        command.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert command.main([str(tmp_path / "old"), str(tmp_path / "b")]) == 0  # written before there were digests
    assert "libero files (not recorded in A, 2b2b2b2b2b2b" in capsys.readouterr().out


def test_the_same_files_in_another_place_are_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = {"libero": ORIGINS["libero"] | {"source": "path /y/LIBERO"}}
    write_run(tmp_path / "a", [[True]], origins=ORIGINS)
    write_run(tmp_path / "b", [[True]], origins=moved)
    assert command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "the runs differ in" not in capsys.readouterr().out


def test_runs_of_another_protocol_of_wprays_own_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [[True]])  # a run.json that names none is of 1
    write_run(tmp_path / "b", [[True]], sessions=[{"wpray_protocol": 2}])
    with pytest.raises(BadInputError, match=r"wpray protocol \(1 in A, 2 in B\)"):
        command.main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [[None]])
    for argv in (
        [str(tmp_path / "a")],
        [str(tmp_path / "a")] * 2,
        [str(tmp_path / "no"), "x"],
        ["a", "b", "--power", "0"],
    ):
        assert run_command(command.main, argv) == 2
