"""Forecast of a run: its arithmetic, and the output of `launch --plan`, which starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from tests.results.recorded import write_run
from wpray import launch
from wpray.cli.command import run_command
from wpray.results import load
from wpray.run.forecast import RunLayout, Speeds, forecast
from wpray.run.plan import duration

SPEEDS = Speeds(env_s=2.0, answer_s=1.0, policy_s=0.1, source="a test")


def _layout(envs: int, policies: int = 1, cores: int | None = None) -> RunLayout:
    return RunLayout(envs, policies, env_cpus=1.0, policy_gpus=1.0, cores=cores)


def test_few_env_actors_set_the_pace() -> None:
    found = forecast(600, SPEEDS, _layout(6))
    assert found.bottleneck == "env actors"
    assert found.per_min == pytest.approx(120)
    assert found.seconds == pytest.approx(300)
    assert found.cpu_hours == pytest.approx(6 * 300 / 3600)
    assert found.gpu_hours == pytest.approx(300 / 3600)
    assert (found.env_actors_to_balance, found.policy_actors_to_balance) == (30, 1)


def test_many_env_actors_wait_for_the_policy() -> None:
    found = forecast(1200, SPEEDS, _layout(90, 2))
    assert found.bottleneck == "policy"
    assert found.seconds == pytest.approx(60)
    assert (found.env_actors_to_balance, found.policy_actors_to_balance) == (60, 3)


def test_cores_that_are_shared_are_a_limit_of_their_own() -> None:
    found = forecast(100, SPEEDS, _layout(50, cores=2))
    assert found.bottleneck == "env actors"
    assert found.per_min == pytest.approx(60)
    assert found.env_actors_to_balance is None  # 2 cores never keep the policy busy
    assert forecast(100, SPEEDS, _layout(50, cores=32)).env_actors_to_balance == 30


def test_a_policy_that_costs_nothing_is_never_the_bottleneck() -> None:
    found = forecast(10, Speeds(2.0, 0.0, 0.0, ""), _layout(1000))
    assert (found.bottleneck, found.env_actors_to_balance, found.policy_actors_to_balance) == ("env actors", None, 1)
    assert found.seconds == 2.0  # no more env actors than episodes, and none faster than one episode


def test_nothing_left_takes_no_time_and_no_actors_are_no_run() -> None:
    assert forecast(0, SPEEDS, _layout(6)).seconds == 0
    with pytest.raises(ValueError, match="at least"):
        forecast(1, SPEEDS, _layout(0))


@given(episodes=st.integers(1, 10**5), envs=st.integers(1, 3000), policies=st.integers(1, 64))
def test_more_actors_never_take_longer_and_the_balance_balances(episodes: int, envs: int, policies: int) -> None:
    found = forecast(episodes, SPEEDS, _layout(envs, policies))
    assert forecast(episodes, SPEEDS, _layout(envs + 1, policies)).seconds <= found.seconds
    assert forecast(episodes, SPEEDS, _layout(envs, policies + 1)).seconds <= found.seconds
    assert found.env_actors_to_balance is not None
    balanced = forecast(10**6, SPEEDS, _layout(found.env_actors_to_balance, policies))
    assert balanced.per_min == pytest.approx(60 * policies / SPEEDS.policy_s)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (44.2, "45 s"), (600, "10 min"), (5400, "1 h 30 min"), (12_000, "3 h 20 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _plan(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run_command(launch.main, ["--plan", "--task_suite", "fake", *argv]) == 0
    assert not ray.is_initialized()
    return capsys.readouterr().out


def test_the_plan_starts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = _plan(capsys, "--num_trials_per_task", "20", "--num_parallel", "4")
    assert not list(tmp_path.iterdir())
    assert "episodes    200 " in said and "4 env actors, 1 policy actor" in said
    assert "bottleneck  env actors" in said and "built-in figures" in said


def test_the_plan_counts_what_is_left_and_uses_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out", [[True, False, None]] * 10)  # an error runs again
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    argv = ("--output_dir", "out", "--num_trials_per_task", "5", "--num_parallel", "1")
    said = _plan(capsys, *argv)
    assert "30 (20 of 50 are finished in out)" in said
    assert "From 20 episodes in out." in said
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
    run = load(tmp_path / "out")
    wall_s = sum(row["wall_s"] for row in run.episodes.to_pylist() if row["status"] != "error")
    queue_s = sum(row["queue_s"] for row in run.decisions.to_pylist() if row["wait_s"] > 0)
    assert queue_s > 0  # which an env actor that is alone does not wait for
    assert f"({60 * 20 / (wall_s - queue_s):.0f} episodes/min)" in said


def test_the_newest_run_of_the_same_policy_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, policy in (("old", "scripted"), ("newer", "scripted"), ("newest", "noop")):
        write_run(tmp_path / "runs" / name, [[True]], policy=policy)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    assert "From 1 episode in runs/newer." in _plan(capsys)
    assert "built-in figures" in _plan(capsys, "--policy", "random")


def test_a_plan_for_a_cluster_sizes_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = _plan(capsys, "--ray.address", "auto", "--ray.num_policy_actors", "2")
    assert "nodes are not asked" in said and "2 policy actors" in said and "each further GPU" not in said
    gpu_policy = ("--policy", "tests.gpu_policy", "--ray.address", "auto", "--num_trials_per_task", "200")
    said = _plan(capsys, *gpu_policy)
    assert "1 policy actor" in said and "each further GPU brings as much" in said
    whole = _hours(said)
    assert whole > 0.05
    assert _hours(_plan(capsys, *gpu_policy, "--ray.policy_resources", '{"GPU": 0.5}')) == pytest.approx(
        whole / 2, abs=0.01
    )


def _hours(said: str) -> float:
    line = next(line for line in said.splitlines() if line.startswith("GPU hours"))
    return float(line.split()[2])


def test_bad_input_is_one_line_here_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(launch.main, ["--plan", "--task_suite", "fake", "--num_trials_per_task", "999"]) == 2
    assert capsys.readouterr().err.startswith("error: num_trials_per_task:")
