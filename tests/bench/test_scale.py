"""`scale`: the simulated cluster follows the arithmetic of its costs, and the rules of real runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench import disk, driver_load, merge_cost, replica_scaling, scale, scale_curves
from tests.bench.simulated_gpu import Costs, SimulatedBatcher
from tests.bench.simulation import Outcome, Shape, Simulation, make_fake_trials
from wpray.cli.command import run_command
from wpray.results.writer import RunFolder

_PLAN_S, _SEGMENT_S = Costs().plan_s, Costs().segment_s
# Seconds of an episode with an idle GPU, and GPU seconds of one in full batches.
ALONE_S = 3 * _PLAN_S[1] + 14 * _SEGMENT_S[1] + 290 * 0.0055 + 17 * 0.005 + 0.05
GPU_S = (3 * _PLAN_S[32] + 14 * _SEGMENT_S[32]) / 32


def _simulate(actors: int, gpus: int, each: int = 8, **costs: float) -> Outcome:
    trials = make_fake_trials(10, max(40, each * actors // 10))
    return Simulation(trials, actors, gpus, Costs(**costs)).run()  # type: ignore[arg-type]


def test_an_episode_has_the_stated_number_of_steps() -> None:
    assert Shape().mean_steps == pytest.approx(290.5)


def test_one_env_actor_alone_is_as_fast_as_its_costs_say() -> None:
    found = _simulate(1, 1, compile_s=0.0)
    wait = 17 * 0.002  # each request waits for others to join its batch
    assert found.per_min == pytest.approx(60 / (ALONE_S + wait), rel=0.03)
    assert found.mean_batch == 1


def test_many_env_actors_fill_batches_and_reach_what_the_gpu_can() -> None:
    found = _simulate(500, 1)
    assert found.gpu_busy > 0.999 and found.mean_batch > 30
    assert found.per_min == pytest.approx(60 / GPU_S, rel=0.05)


def test_few_waves_of_many_env_actors_do_not_beat_the_gpu() -> None:
    assert _simulate(2000, 1).per_min == pytest.approx(60 / GPU_S, rel=0.03)


def test_two_gpus_are_nearly_twice_one_while_the_envs_can_feed_them() -> None:
    assert _simulate(512, 2).per_min > 1.9 * _simulate(512, 1).per_min


def test_a_slow_driver_is_the_limit_and_named_so() -> None:
    point = scale_curves.simulate([256], [8], Costs(driver_s=0.05))[0]
    assert point.limit == "driver"
    assert point.outcome.per_min == pytest.approx(60 / 0.05, rel=0.05)


def test_limits_and_bends_are_found() -> None:
    points = scale_curves.simulate([1, 8, 64, 256], [1, 2], Costs())
    assert [point.limit for point in points[:1]] == ["env actors"]
    assert [point.limit for point in points if point.outcome.env_actors == 256] == ["GPUs", "GPUs"]
    assert points[0].efficiency == pytest.approx(0.95, rel=0.02)  # because it compiles each task
    assert all(0 < point.efficiency < 1.02 for point in points)
    bends = list(scale_curves.bends(points))
    assert [point.outcome.gpus for point in bends] == [1, 2]
    assert bends[0].outcome.env_actors <= bends[1].outcome.env_actors


def test_a_batch_goes_by_the_rule_of_the_policy_actor() -> None:
    batcher = SimulatedBatcher(4, 0.002)
    actor = object()
    batcher.ask("plan", actor, 0.0)  # type: ignore[arg-type]
    assert batcher.due(0.0) == pytest.approx(0.002)  # waits for others to join
    for _ in range(4):
        batcher.ask("segment", actor, 0.001)  # type: ignore[arg-type]
    assert batcher.due(0.001) == 0.001  # full
    assert batcher.take_batch(0.001) == ("segment", [actor] * 4)
    batcher.note_cost("plan", 1, 0.1)
    batcher.ask("segment", actor, 0.2)  # type: ignore[arg-type]
    assert batcher.take_batch(0.25)[0] == "segment"  # it overtakes a plan that gathers
    batcher.ask("segment", actor, 0.5)  # type: ignore[arg-type]
    assert batcher.take_batch(0.6)[0] == "plan"  # because it has gathered for long enough


@pytest.mark.parametrize("actors", [3, 32, 300])
def test_no_env_actor_idles_for_an_episode_while_work_is_left(actors: int) -> None:
    simulation = Simulation(make_fake_trials(10, 60), actors, 4)
    found = simulation.run()
    assert len(simulation.finished) == 600
    assert found.idle_with_work_s < ALONE_S
    last = simulation.scheduler
    assert last.finished and last.num_pending == 0


def test_the_bench_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "scale.json", tmp_path / "scale.svg"
    few = [
        "--driver-ms",
        "1",
        "--parts",
        "0",
        "--replicas",
        "0",
        "--paper-actors",
        "20",
        "--paper-episodes",
        "1000",
        "--env-actors",
        "1",
        "32",
        "--gpus",
        "1",
        "2",
    ]
    assert run_command(scale.main, [*few, "--json", str(figures), "--plot", str(picture)]) == 0
    assert "bends here" in capsys.readouterr().out
    rows = json.loads(figures.read_text())["simulated"]
    assert [(row["gpus"], row["env_actors"]) for row in rows] == [(1, 1), (1, 32), (2, 32)]
    assert "2 GPUs" in picture.read_text()


def test_merging_is_measured_on_readable_parts(tmp_path: Path) -> None:
    merge_cost.make_parts(RunFolder(tmp_path), 120)
    assert len(RunFolder(tmp_path).parts()) == 120
    found = merge_cost.measure(120)
    assert found.parts == 120 and found.cpu_s > 0 and found.peak_mib >= found.before_mib > 10


def test_the_drivers_own_work_does_not_grow_with_env_actors_and_its_memory_hardly_with_episodes() -> None:
    few, many = (driver_load.measure(actors, 10_000) for actors in (10, 2000))
    assert many.cpu_ms < 0.5, "of the millisecond that an episode may take, Ray needs most"
    assert many.cpu_ms < 3 * few.cpu_ms
    assert driver_load.measure(2000, 10_000, memory=True).kept_bytes < 1000


def test_a_replica_that_always_computes_is_busy_all_the_time_whatever_it_is_asked_when(tmp_path: Path) -> None:
    plan_s, segment_s = 0.3, 0.05
    costs = [plan_s] * 8 + [segment_s] * 24 + [plan_s] * 8  # no plan ends in the middle half
    start = datetime(2026, 1, 1, tzinfo=UTC)
    episodes = {"task_id": [0, 0], "trial": [0, 1], "started_at": [start, start]}
    decisions = {
        "task_id": [0] * len(costs),
        "trial": [index % 2 for index in range(len(costs))],
        "asked_s": [sum(costs[:index]) for index in range(len(costs))],
        "wait_s": costs,
        "compute_s": costs,
    }
    for name, columns in {"episodes": episodes, "decisions": decisions}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    rate = replica_scaling.rate_of(tmp_path, replicas=1, env_actors=2)
    assert rate.busy == pytest.approx(1)
    assert rate.per_min == pytest.approx(60 * 2 / sum(costs))


@pytest.mark.ray
@pytest.mark.slow
def test_two_policy_replicas_bring_nearly_twice_one_while_the_envs_can_feed_them() -> None:
    one, two = (replica_scaling.measure(replicas, env_actors=8, episodes=32) for replicas in (1, 2))
    assert min(one.busy, two.busy) > 0.9, "the environments did not feed the replicas"
    assert two.per_min > 1.9 * one.per_min


@pytest.mark.ray
@pytest.mark.parametrize("instant", [False, True])
def test_the_driver_is_measured_on_real_actors(instant: bool) -> None:
    from tests.bench import driver_cost

    found = driver_cost.measure(2, 40, instant)
    assert 0 < found.episodes <= 35 and found.episodes_per_min > 0
    assert found.cpu_ms == pytest.approx(found.own_ms + found.files_ms + found.ray_ms)
    assert min(found.own_ms, found.files_ms, found.ray_ms) > 0


def test_the_disk_that_is_measured_is_named() -> None:
    with disk.temporary_folder() as path:
        (path / "episodes").mkdir()
        assert disk.disk_of(path) != "unknown"
    assert not path.exists()
    assert disk.disk_of(Path("/proc/self")) == "proc"
