"""Messages about actors that seem to hang name a retry.stall_s that is too short as a possible cause."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from wpray.config import Config
from wpray.orchestration import env_actor_pool, policy_actor_pool, serving_actor_pool
from wpray.orchestration.events import EnvLost, EventQueue

REMEDY = "or retry.stall_s is less than it takes: raise it"
CONTEXT: Any = SimpleNamespace(config=Config.model_validate({"task_suite": "fake", "retry": {"stall_s": 2}}))


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ({"exists_since": 11}, "it did not start within 10 s (5 x retry.stall_s)"),
        ({"host": SimpleNamespace(), "busy": True, "heartbeat": 3, "requested": 2}, "no step or reply for 2 s"),
    ],
)
def test_an_env_actor_that_seems_to_hang(worker: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.kill", lambda *_, **__: None)
    ago = {name: time.monotonic() - value if isinstance(value, int) else value for name, value in worker.items()}
    ago["busy"] = worker.get("busy", False)
    actors = env_actor_pool.EnvActorPool(CONTEXT, [], EventQueue())
    actors._workers["env-0"] = env_actor_pool._Worker(handle=None, **ago)
    lost = actors.check()
    assert isinstance(lost, EnvLost)
    assert lost.failure.reason.startswith(said) and lost.failure.reason.endswith(REMEDY)


@pytest.fixture
def policy_actors(monkeypatch: pytest.MonkeyPatch) -> policy_actor_pool.PolicyActorPool:
    """Return a pool of one replica, whose process has answered before."""
    monkeypatch.setattr("ray.kill", lambda *_, **__: None)
    monkeypatch.setattr(policy_actor_pool.PolicyActor, "options", lambda **_: SimpleNamespace(remote=lambda *_: None))
    actors = policy_actor_pool.PolicyActorPool(CONTEXT, 0, 1, EventQueue())
    actors._replicas[0].alive = True
    return actors


def _silent_for(actors: policy_actor_pool.PolicyActorPool, seconds: float, loaded: bool) -> None:
    actors._replicas[0].requested, actors._replicas[0].loaded = time.monotonic() - seconds, loaded


def test_a_policy_actor_that_seems_to_hang(
    policy_actors: policy_actor_pool.PolicyActorPool, caplog: pytest.LogCaptureFixture
) -> None:
    _silent_for(policy_actors, 3, loaded=True)
    with caplog.at_level(logging.WARNING):
        assert policy_actors.check() is None
    assert f"has not answered (retry.stall_s: 2 s): hung, {REMEDY}" in caplog.text


@pytest.mark.parametrize(("seconds", "hangs"), [(9, False), (11, True)])
def test_a_policy_actor_that_loads_may_be_silent_for_longer(
    seconds: float, hangs: bool, policy_actors: policy_actor_pool.PolicyActorPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Importing a framework holds Python's lock, for seconds where the cores are busy."""
    _silent_for(policy_actors, seconds, loaded=False)
    with caplog.at_level(logging.WARNING):
        assert policy_actors.check() is None
    assert ("hung" in caplog.text) == hangs


def test_an_actor_that_was_restarted_gets_its_time_to_start(
    policy_actors: policy_actor_pool.PolicyActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat that it did not answer while it started is Ray's to deliver to the next process."""
    killed: list[bool] = []
    monkeypatch.setattr("ray.kill", lambda _, no_restart: killed.append(no_restart))
    monkeypatch.setattr(serving_actor_pool, "_LOADING_S", 0.0)
    policy_actors._replicas[0].alive = False
    _silent_for(policy_actors, 11, loaded=False)
    for _ in range(3):
        assert policy_actors.check() is None
    assert killed == [False]
