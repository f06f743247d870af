"""Render actors draw what environments would: the same tables. They serve run after run, or end one."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration import render_actor_pool, serving_actor_pool
from wpray.orchestration.actors import (
    ActorHealth,
    ActorHost,
    EnvActorImpl,
    LoadedReplica,
    RenderActorImpl,
    RunContext,
)
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.events import ActorFailure, EnvReady, EventQueue, RenderLost, RenderReady
from wpray.orchestration.notices import NoticeKeeper
from wpray.orchestration.render_actor_pool import RenderActorPool
from wpray.policies.factory import policy_spec
from wpray.results.schema import OUTCOME_COLUMNS
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.run.evaluation import CallerParts, evaluate_with
from wpray.run.pools import Pools

LOOKING = "tests.looking_policy"  # its actions depend on every pixel
CONFIG = Config.model_validate({"task_suite": "fake", "policy": "noop"})
CONTEXT = RunContext("run", CONFIG, b"of the policy", spec=policy_spec(CONFIG))
HOST = ActorHost("here", 1, "egl", {})


class _Actor:
    """Render actor that is ready at once, and then gone for good."""

    def __init__(self) -> None:
        self._answers = [ActorHealth(0.0, loaded=LoadedReplica(HOST, 1.0)), RuntimeError("it is gone")]
        self.health = SimpleNamespace(remote=lambda: SimpleNamespace(future=self._answer))

    def _answer(self) -> Future[Any]:
        future, answer = Future[Any](), self._answers.pop(0)
        future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)
        return future


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, RunContext]]:
    """List node, place on it and context of each actor that is started."""
    calls: list[tuple[str, int, RunContext]] = []

    def options(scheduling_strategy: Any, memory: int) -> Any:
        def remote(number: int, context: RunContext, place: int) -> _Actor:
            calls.append((getattr(scheduling_strategy, "node_id", scheduling_strategy), place, context))
            return _Actor()

        return SimpleNamespace(remote=remote)

    monkeypatch.setattr(render_actor_pool, "RenderActor", SimpleNamespace(options=options))
    monkeypatch.setattr(serving_actor_pool, "_CHECK_S", 0.0)
    monkeypatch.setattr(serving_actor_pool, "_LOADING_S", 0.0)
    return calls


def test_actors_go_to_gpus_in_turn_and_have_a_key_of_their_own(started: list[tuple[str, int, RunContext]]) -> None:
    a, b = "a" * 56, "b" * 56  # ids of nodes
    pool = RenderActorPool(CONTEXT, 4, [a, b, a], EventQueue())
    assert [call[:2] for call in started] == [(a, 0), (b, 0), (a, 1), (a, 2)]
    assert {call[2].key for call in started} == {pool.renderers.key} != {CONTEXT.key}
    RenderActorPool(CONTEXT, 1, [], EventQueue())
    assert started[-1][:2] == ("DEFAULT", 0)


def test_a_pool_reports_who_is_ready_to_every_run_and_that_none_is_left(
    started: list[tuple[str, int, RunContext]],
) -> None:
    first, second = EventQueue(), EventQueue()
    pool = RenderActorPool(CONTEXT, 1, [], first)
    assert pool.check() is None and first.next(0) == RenderReady(0, HOST)
    pool.hand_over(CONTEXT, second)
    assert pool.check() is None and not pool.is_lost
    lost = second.next(0)
    assert isinstance(lost, RenderLost) and "it is gone" in lost.failure.reason and pool.is_lost


def test_a_turn_that_takes_long_counts_as_idle_time() -> None:
    actor = object.__new__(RenderActorImpl)
    actor._loading, actor._notices = Future(), NoticeKeeper()
    actor._loading.set_result(LoadedReplica(HOST, 1.0))
    stuck = SimpleNamespace(busy_since=time.monotonic() - 9, busy_s=0.0, check=lambda: None)
    actor._answering, actor._server = cast(Any, stuck), cast(Any, stuck)
    assert actor.health().idle_s >= 9


def test_an_env_actor_goes_to_a_render_actor_that_has_come_back() -> None:
    """Those that drew meanwhile would otherwise keep all of its environments."""
    left: list[str] = []
    actor = object.__new__(EnvActorImpl)
    actor._replicas_seen, actor._rebalanced_at = 1, time.monotonic()
    policy, drawing = (_Line(name, left) for name in ("policy", "drawing"))
    actor._policy, actor._selector = cast(Any, policy), cast(Any, SimpleNamespace(should_rebalance=lambda _: False))
    actor._drawing = [(cast(Any, drawing), cast(Any, SimpleNamespace(should_rebalance=lambda name: name == "drawing")))]
    actor._spread_load(1)
    assert left == []
    actor._spread_load(2)
    assert left == ["drawing"]


class _Line:
    """Connection that is there."""

    def __init__(self, name: str, left: list[str]) -> None:
        self.connected_to, self.disconnect = name, lambda: left.append(name)


def _driver(folder: Path) -> Driver:
    pool: Any = SimpleNamespace(replicas_ready=0)
    return Driver(CONTEXT, pool, pool, pool, RunFolder(folder), Tally({}), cast(Any, None), RunRecord(), pool)


def test_a_run_without_render_actors_stops_and_keeps_what_is_finished(tmp_path: Path) -> None:
    driver = _driver(tmp_path)
    driver._handle(RenderLost(ActorFailure("ActorDiedError: gone", bad_input=False)))
    assert driver.stop is not None and driver.stop.at_once and not driver.stop.of_this_run
    assert driver.stop.reason == "no render actor can draw: ActorDiedError: gone"
    with pytest.raises(BadInputError, match="libEGL"):
        driver._handle(RenderLost(ActorFailure("the library libEGL is missing", bad_input=True)))


def test_the_renderer_of_a_run_is_that_of_its_render_actors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = _driver(tmp_path)
    driver._handle(EnvReady("env-0", ActorHost("cpu", 1, None, {})))
    driver._handle(RenderReady(0, HOST))
    driver._handle(EnvReady("env-1", ActorHost("cpu", 1, None, {})))
    assert driver.hosts["render-0"] == HOST and not caplog.records
    assert driver._env_actors.replicas_ready == 1, "so that env actors look for a less loaded one"


def _tables(folder: Path) -> list[Any]:
    rows = pq.read_table(folder / "episodes.parquet", columns=list(OUTCOME_COLUMNS)).to_pylist()
    return [rows, {path.name: path.read_bytes() for path in (folder / "trajectories").iterdir()}]


@pytest.mark.ray
def test_render_actors_give_the_tables_of_environments_that_draw(tmp_path: Path) -> None:
    """Three runs one after the other, as a sweep has them; the second goes on with the first one's render actors."""
    base = {"task_suite": "fake", "policy": LOOKING, "tasks": "0-1", "num_trials_per_task": 2, "num_parallel": 2}
    kept, found = [], []
    with Pools(for_many_runs=True) as pools:
        for number, render in enumerate(("remote", "remote", "local")):
            own = {"output_dir": str(tmp_path / str(number)), "env": {"render": render, "render_actors": 2}}
            config = Config.model_validate({**base, **own, "video": {"mode": "none"}})
            folder = evaluate_with(config, CallerParts(), pools).folder
            kept.append(pools.render_actors)
            found.append(_tables(folder.path))
            info = folder.read_info() or {}
            assert info["drawing"] == {"place": render, "because": f"env.render is {render}"}
            assert info["sessions"][0]["drawing"] == info["drawing"]
    assert kept[0] is kept[1] is not None and kept[2] is None
    assert len(kept[0].handles) == 2
    assert len(found[0][1]) == 4 and found[0] == found[1] == found[2]


@pytest.mark.ray
@pytest.mark.libero
@pytest.mark.slow
def test_libero_is_drawn_by_a_render_actor_to_the_pixel(tmp_path: Path) -> None:
    """Each action depends on every pixel, so that one other bit would change the trajectory."""
    short = {"tasks": "0", "num_steps_wait": 2, "num_parallel": 1, "record": "full", "video": {"mode": "none"}}
    base = {"task_suite": "libero_object", "policy": LOOKING, **short}
    found = []
    for render in ("local", "remote"):
        own = {"output_dir": str(tmp_path / render), "env": {"max_steps": 9, "renderer": "osmesa", "render": render}}
        folder = evaluate_with(Config.model_validate({**base, **own}), CallerParts()).folder
        found.append(_tables(folder.path))
        hosts = (folder.read_info() or {})["hosts"].values()
        assert [host["renderer"] for host in hosts] == ["osmesa"]
    assert len(found[0][1]) == 1 and found[0] == found[1]
