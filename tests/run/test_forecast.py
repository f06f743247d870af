"""Forecast of a run: its arithmetic, and the output of `launch --plan`, which starts nothing."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.results.recorded import START, write_run
from wpray import launch
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.environments import Host
from wpray.results import load
from wpray.results.pace import steady_per_min
from wpray.run import speeds as run_speeds
from wpray.run.forecast import Requests, RunLayout, Speeds, forecast
from wpray.run.plan import duration
from wpray.run.speeds import speeds_for

SPEEDS = Speeds(env_s=2.0, answer_s=1.0, policy_s=0.1, source="a test")

VLA = PolicySpec("vla", images=True, privileged=False, num_gpus=1, max_batch_size=32)
TINY = PolicySpec("tiny", images=True, privileged=False, num_gpus=0, max_batch_size=32)
H100, H200 = Host(16, gpus=1, gpu_model="NVIDIA H100 80GB HBM3"), Host(16, gpus=1, gpu_model="NVIDIA H200")
PLENTY = Host(64, gpus=1, gpu_model="NVIDIA H200")  # of cores


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
    here = tmp_path / "runs" / "newer" / "run.json"
    here.write_text(json.dumps(json.loads(here.read_text()) | {"hosts": {"a": {"gpu": "NVIDIA H100 80GB HBM3"}}}))
    for host, newest in ((H100, "newer"), (H200, "old")):
        monkeypatch.setattr(Host, "here", lambda *_, host=host: host)
        assert f"From 1 episode in runs/{newest}." in _plan(capsys), "times of another GPU are not this one's"


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


@pytest.mark.parametrize(
    ("what", "host", "spec", "layout", "measured"),
    [  # libero_object with EGL, 290 steps an episode, full-size models in bfloat16 unless tiny; wpray/bench/README.md
        ("pair", H200, VLA, (44, 1, 16), 321),
        ("pair", H200, VLA, (51, 1, 16), 337),
        ("pair", H200, VLA, (56, 1, 16), 329),
        ("pair, on a faster machine", H200, VLA, (56, 1, 16), 376),
        ("pair", H200, VLA, (57, 1, 16), 287),
        ("pair, an earlier version", H200, VLA, (44, 1, 16), 306),
        ("pair, an earlier version", H200, VLA, (44, 1, 16), 287),
        ("pair, an earlier version", H200, VLA, (24, 1, 16), 228),
        ("joint", H200, VLA, (44, 1, 16), 289),
        ("block planner", H200, VLA, (44, 1, 16), 318),
        ("pair, an earlier version", H100, VLA, (44, 1, 16), 307),
        ("pair, an earlier version", PLENTY, VLA, (44, 1, 64), 360),
        ("pair, an earlier version", PLENTY, VLA, (88, 2, 64), 693),
        ("pair, an earlier version", PLENTY, VLA, (88, 2, 64), 709),
        ("pair, on a slower machine", H200, VLA, (56, 1, 16), 340),
        ("pair, on a slower machine", H200, VLA, (56, 1, 16), 352),
        ("tiny", H200, TINY, (28, 1, 16), 549),
        ("tiny, beside another such run on the host", H200, TINY, (28, 1, 16), 453),
        ("tiny", H200, TINY, (56, 2, 32), 899),
    ],
)
def test_the_built_in_figures_foretell_every_measured_run(
    what: str, host: Host, spec: PolicySpec, layout: tuple[int, int, int], measured: float, tmp_path: Path
) -> None:
    envs, policies, cores = layout
    speeds = speeds_for(Config(), spec, host, tmp_path)
    found = forecast(10_000, speeds, _layout(envs, policies, cores))
    assert found.per_min == pytest.approx(measured, rel=0.2), what
    assert found.bottleneck == ("env actors" if spec is TINY else "policy")


@pytest.mark.parametrize(
    ("what", "episodes", "envs", "measured"),
    [
        ("pair, first run, an earlier version", 480, 44, 190),
        ("pair, first run", 240, 44, 160),
        ("pair", 240, 51, 227),
        ("pair", 240, 56, 222),
        ("pair", 240, 57, 202),
        ("joint", 300, 44, 208),
        ("block planner", 300, 44, 234),
    ],
)
def test_a_whole_run_loads_the_policy_and_waits_for_the_last_episodes(
    what: str, episodes: int, envs: int, measured: float, tmp_path: Path
) -> None:
    found = forecast(episodes, speeds_for(Config(), VLA, H200, tmp_path), _layout(envs, 1, 16))
    assert 60 * episodes / found.span_s == pytest.approx(measured, rel=0.2), what
    assert found.span_s > found.load_s + found.seconds


def test_batches_grow_with_the_environments_and_no_number_of_them_brings_more_than_full_ones() -> None:
    speeds = Speeds(2.0, 0.0, 0.0, "", (Requests(10, 0.1, 0.005),))
    paces = [forecast(10**6, speeds, _layout(envs)).per_min for envs in (1, 2, 10, 40, 160, 10**5)]
    assert all(slower < 1.000001 * faster for slower, faster in itertools.pairwise(paces))
    assert paces[0] == pytest.approx(60 / (2 + 10 * 0.105)), "one environment is alone in every batch"
    assert paces[-1] == pytest.approx(60 / (10 * (0.1 / 32 + 0.005)))
    found = forecast(10**6, speeds, _layout(10))
    assert found.env_actors_to_balance is not None and found.env_actors_to_balance > 10
    few = forecast(10**6, speeds, _layout(10, cores=1))
    assert few.per_min == pytest.approx(30)
    assert (few.bottleneck, few.env_actors_to_balance) == ("env actors", None)


@settings(max_examples=25)
@given(episodes=st.integers(1, 10**5), envs=st.integers(1, 300), policies=st.integers(1, 8), cores=st.integers(1, 128))
def test_more_actors_never_slow_the_model_down(episodes: int, envs: int, policies: int, cores: int) -> None:
    speeds = Speeds(2.0, 0.0, 0.0, "", (Requests(3, 0.1, 0.005), Requests(14, 0.01, 0.005)), crowding=0.02)
    found = forecast(episodes, speeds, _layout(envs, policies, cores))
    more = (_layout(envs + 1, policies, cores), _layout(envs, policies + 1, cores), _layout(envs, policies, cores + 1))
    assert all(forecast(episodes, speeds, other).per_min >= 0.999 * found.per_min for other in more)


def test_what_is_not_known_is_said_to_be_assumed(tmp_path: Path) -> None:
    def said(spec: PolicySpec, host: Host, **settings: object) -> str:
        return speeds_for(Config.model_validate(settings), spec, host, tmp_path).source

    assert "290 steps an episode, EGL, an H200, a Waypoint VLA of full size" in said(VLA, H200)
    assert "NVIDIA B300 as fast as an H200" in said(VLA, Host(16, gpus=1, gpu_model="NVIDIA B300"))
    assert "OSMesa, a GPU as fast as an H200" in said(VLA, Host(16), env={"renderer": "osmesa"})
    assert "530 steps an episode, OSMesa, a policy that answers at once" in said(TINY, Host(4), task_suite="libero_10")
    chunks = PolicySpec("pi", True, False, num_gpus=1, max_batch_size=32, kind="chunk", execute_steps=10)
    assert "a chunk policy of the size of pi0" in said(chunks, H200)


class Earlier:
    """Run whose environments share cores, as `load` returns it."""

    def __init__(self, envs: int, each: int, episode_s: float) -> None:
        ends = [
            (env, START + timedelta(seconds=episode_s * (number + 1 + env / envs)))
            for env in range(envs)
            for number in range(each)
        ]
        wait_s = 0.4 * episode_s
        self.path, self.info = Path("runs/earlier"), {"config": {"task_suite": "libero_object"}}
        self.episodes = pa.table(
            {
                "status": ["failure"] * len(ends),
                "worker": [f"env-{env}" for env, _ in ends],
                "wall_s": [episode_s] * len(ends),
                "ended_at": [end for _, end in ends],
                "started_at": [end - timedelta(seconds=episode_s) for _, end in ends],
            }
        )
        sizes = [4, 8, 16, 32]
        self.decisions = pa.table(
            {
                "kind": ["chunk"] * 4 * len(ends),
                "batch_size": sizes * len(ends),
                "compute_s": [0.05 + 0.004 * size for size in sizes] * len(ends),
                "wait_s": [wait_s / 4] * 4 * len(ends),
                "queue_s": [wait_s / 8] * 4 * len(ends),
            }
        )


def test_an_earlier_run_foretells_its_own_pace_and_fewer_environments_a_lower_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier: Any = Earlier(44, 6, 8.0)
    monkeypatch.setattr(run_speeds, "_alike", lambda *_: earlier)
    speeds = speeds_for(Config(), VLA, H200, tmp_path)
    assert speeds.source == "264 episodes in runs/earlier"
    steady = steady_per_min(earlier.episodes)
    assert steady is not None and steady == pytest.approx(44 / 8 * 60, rel=0.05)
    assert forecast(10**6, speeds, _layout(44, cores=16)).per_min == pytest.approx(steady, rel=0.01)
    assert forecast(10**6, speeds, _layout(12, cores=16)).per_min < 0.8 * steady
    assert forecast(10**6, speeds, _layout(88, 2, cores=32)).per_min > 1.3 * steady


def test_the_plan_of_a_policy_on_a_gpu_says_what_other_numbers_would_bring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Host, "here", lambda *_: H200)
    said = _plan(capsys, "--policy", "tests.gpu_policy", "--num_trials_per_task", "50", "--num_parallel", "44")
    assert "whole run   about 2 min, 30 s of it until the policy answers" in said
    assert "Balance: 22 env actors would bring " in said and "; 2 policy actors " in said
