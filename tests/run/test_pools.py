"""A policy loads ahead only where there is memory for two, and for the run that it was loaded for."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wpray.config import Config
from wpray.orchestration.actors import PolicyMemory
from wpray.orchestration.sizing import SizeLimits
from wpray.policies.environments import Suited
from wpray.policies.factory import policy_spec
from wpray.run import pools as module
from wpray.run.pools import Pools

GIB = 2**30
FULL, ROOMY = PolicyMemory(4 * GIB, 5 * GIB), PolicyMemory(4 * GIB, 7 * GIB)
CONFIGS = [Config(task_suite="fake", policy="noop", seed=seed) for seed in range(3)]


@pytest.mark.parametrize(
    ("memory", "fits"),
    [
        (FULL, False),
        (ROOMY, True),
        (PolicyMemory(GIB, None), False),  # nobody knows
        (PolicyMemory(GIB, 8 * GIB, gpu=(14 * GIB, 20 * GIB), has_gpu=True), True),
        (PolicyMemory(GIB, 8 * GIB, gpu=(14 * GIB, 16 * GIB), has_gpu=True), False),
        (PolicyMemory(GIB, 8 * GIB, has_gpu=True), False),  # a policy that does not say
    ],
)
def test_another_policy_needs_as_much_and_a_reserve(memory: PolicyMemory, fits: bool) -> None:
    assert memory.has_room is fits


class _Reference:
    """Result of a Ray call."""

    def __init__(self, result: Any) -> None:
        self._future: Future[Any] = Future()
        self._future.set_result(result)

    def future(self) -> Future[Any]:
        return self._future


class _PolicyPool:
    """Policy actors that only say how much memory they take."""

    started: list[_PolicyPool]
    memory = ROOMY

    def __init__(self, context: Any, num_gpus: float, size: int, events: Any) -> None:
        self.seed, self.share, self.closed = context.config.seed, num_gpus, False
        told = SimpleNamespace(remote=lambda: _Reference(self.memory))
        self.handles = [SimpleNamespace(memory=told)] * size
        self.started.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[_PolicyPool]:
    _PolicyPool.started = []
    monkeypatch.setattr(module, "PolicyActorPool", _PolicyPool)
    monkeypatch.setattr(module, "policy_actors", lambda config, num_gpus: (2, 1.0))
    return _PolicyPool.started


def _ask_ahead(pools: Pools, events: Any, config: Config) -> None:
    pools.load_ahead(config, policy_spec(config))
    while not events.empty:
        events.next(0)


def test_the_next_policy_takes_the_rest_of_the_gpu_and_serves_its_run(started: list[_PolicyPool]) -> None:
    spec = policy_spec(CONFIGS[0])
    with Pools(for_many_runs=True) as pools:
        with pools.policies(CONFIGS[0], spec, None) as first:
            _ask_ahead(pools, first.events, CONFIGS[1])
            _ask_ahead(pools, first.events, CONFIGS[2])  # one ahead is enough
        assert [(pool.seed, pool.share, pool.closed) for pool in started] == [(0, 0.6, True), (1, 0.4, False)]
        with pools.policies(CONFIGS[1], spec, None) as second:
            assert second.pool is started[1]  # type: ignore[comparison-overlap]
            _ask_ahead(pools, second.events, CONFIGS[2])
        assert [pool.share for pool in started] == [0.6, 0.4, 0.6]
        with pools.policies(CONFIGS[0], spec, None):
            assert started[2].closed and started[3].seed == 0  # another run came instead
    assert all(pool.closed for pool in started)


def test_without_room_the_next_policy_loads_in_its_turn(
    started: list[_PolicyPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_PolicyPool, "memory", FULL)
    with Pools(for_many_runs=True) as pools, pools.policies(CONFIGS[0], policy_spec(CONFIGS[0]), None) as first:
        _ask_ahead(pools, first.events, CONFIGS[1])
        assert [pool.seed for pool in started] == [0]


def test_a_run_alone_takes_whole_gpus(started: list[_PolicyPool]) -> None:
    with Pools() as pools, pools.policies(CONFIGS[0], policy_spec(CONFIGS[0]), None):
        assert [pool.share for pool in started] == [1.0]


def test_a_run_goes_on_with_the_number_of_environments_that_the_one_before_it_has_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "env_actors_in_memory", lambda _: 28)
    monkeypatch.setattr(module, "env_actors_that_fit", lambda _: 16)
    pools, noted, env_actors = Pools(), list[tuple[Any, ...]](), SimpleNamespace(most_reserving=None)
    info: Any = SimpleNamespace(add_environments=lambda *what, save: noted.append((*what, save)))
    assert pools.chosen(CONFIGS[0]) is None, "Ray is somebody else's, or has not started"
    pools._environments = Suited(16, 16, "they wait", most=32, places=40)
    with pools.sizing(CONFIGS[0], 16, cast(Any, env_actors), 2, info) as sizer:
        assert sizer is not None
        assert (sizer._limits, env_actors.most_reserving) == (SizeLimits(28, 28, 16, 40), 16)
        sizer.number = 20
    chosen = pools.chosen(CONFIGS[0])
    assert chosen is not None and (chosen.number, chosen.most) == (20, 32)
    with pools.sizing(CONFIGS[0], 20, cast(Any, env_actors), 2, info):
        pass
    assert noted == [(16, "they wait", False), (20, "an earlier run was fastest with it", False)]
    given = CONFIGS[0].model_copy(update={"num_parallel": 5})
    assert pools.chosen(given) is None
    with pools.sizing(given, 5, cast(Any, env_actors), 2, info) as fixed:
        assert fixed is None
