"""Messages about actors that seem to hang name a retry.stall_s that is too short as a possible cause."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from wpray.config import Config
from wpray.orchestration import env_actor_pool, policy_actor_pool
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


def test_a_policy_actor_that_seems_to_hang(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("ray.kill", lambda *_, **__: None)
    monkeypatch.setattr(policy_actor_pool.PolicyActor, "options", lambda **_: SimpleNamespace(remote=lambda *_: None))
    actors = policy_actor_pool.PolicyActorPool(CONTEXT, 0, 1, EventQueue())
    actors._replicas[0].alive, actors._replicas[0].requested = True, time.monotonic() - 3
    with caplog.at_level(logging.WARNING):
        assert actors.check() is None
    assert f"has not answered (retry.stall_s: 2 s): hung, {REMEDY}" in caplog.text
