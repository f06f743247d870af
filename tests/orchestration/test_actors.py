"""Failures of actors outside of their requests, and how the driver handles them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from wpray.benchmarks.fake.environment import fake_tasks
from wpray.config import Config
from wpray.errors import ThreadDiedError
from wpray.orchestration import actors, policy_actor_pool, serving_actor_pool
from wpray.orchestration.actors import (
    ActorHealth,
    ActorHost,
    EnvActorImpl,
    LoadedReplica,
    PolicyActorImpl,
    RunContext,
    row_context,
)
from wpray.orchestration.events import Event, EventQueue, PolicyHashed, PolicyLost, PolicyReady
from wpray.orchestration.notices import NoticeKeeper
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.orchestration.scheduler import Assignment
from wpray.policies.batching import Batcher
from wpray.policies.factory import policy_spec
from wpray.policies.noop import NoopPolicy
from wpray.policies.request_queue import PolicyError
from wpray.rollout import PolicyOutputError
from wpray.transport import connection
from wpray.transport.connection import Address
from wpray.transport.policy_connection import PolicyServer
from wpray.types import Failure, Trial

CONFIG = Config.model_validate({"task_suite": "fake", "policy": "noop"})
CONTEXT = RunContext("run", CONFIG, b"key", spec=policy_spec(CONFIG))
LOADED = ActorHealth(0.0, loaded=LoadedReplica(ActorHost("here", 1, None, {}), 1.0))


def test_a_policy_actor_that_cannot_listen_says_so_instead_of_loading_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.1")  # no address of this machine
    shell, deadline = PolicyActorImpl(0, CONTEXT), time.monotonic() + 10
    with pytest.raises(OSError, match="assign requested address"):
        while time.monotonic() < deadline:
            shell.health()
            time.sleep(0.02)


def test_nobody_waits_for_a_machine_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BLOCKED_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as silent,
        socket.socket() as first,
        socket.socket() as second,
    ):
        for early in (first, second):  # fill its queue: it answers no other
            early.setblocking(False)
            early.connect_ex(silent.getsockname())
        began = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            connection._connect(Address("127.0.0.1", silent.getsockname()[1], 0, "node", 0, "incarnation"))
        assert time.monotonic() - began < 5


class Replica:
    """Replica that gives scripted answers at once."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {"health": [], "file_hashes": []}

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: self._answer(name)))

    def _answer(self, name: str) -> Future[Any]:
        future, answer = Future[Any](), self.answers[name].pop(0)
        future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)
        return future


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """List, for each replica that is ended, whether Ray must not restart it."""
    calls: list[bool] = []
    monkeypatch.setattr(ray, "kill", lambda _, no_restart: calls.append(no_restart))
    return calls


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any], list[Any]], list[Event]]:
    """Return a function that yields the events of one replica with the given answers."""
    replica = Replica()
    options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: replica))
    monkeypatch.setattr(policy_actor_pool, "PolicyActor", options)
    monkeypatch.setattr(serving_actor_pool, "_CHECK_S", 0.0)
    monkeypatch.setattr(serving_actor_pool, "_LOADING_S", 0.0)

    def run(health: list[Any], hashes: list[Any]) -> list[Event]:
        events = EventQueue()
        pool = PolicyActorPool(CONTEXT, 0, 1, events)
        replica.answers.update(health=[*health], file_hashes=[*hashes])
        found: list[Event | None] = []
        while replica.answers["health"] or not events.empty:
            found += [pool.check() if events.empty else None, events.next(0)]
        return [event for event in found if event is not None]

    return run


def _gone_on(error: Exception) -> Exception:
    return cast(Exception, ray.exceptions.RayTaskError("file_hashes", "trace", error))


def test_digests_are_requested_again_from_a_replica_that_was_restarted_before_it_answered(
    play: Callable[[list[ActorHealth], list[Any]], list[Event]],
) -> None:
    events = play([LOADED, LOADED, LOADED], [_gone_on(ConnectionError("the policy is loading")), {"a": "1"}])
    assert [type(event) for event in events] == [PolicyReady, PolicyReady, PolicyHashed]
    assert events[-1] == PolicyHashed({"a": "1"})


def test_a_replica_that_came_back_unnoticed_is_ready_again(
    play: Callable[[list[ActorHealth], list[Any]], list[Event]],
) -> None:
    events = play([LOADED, ActorHealth(0.0), LOADED], [{"a": "1"}, {"a": "2"}])
    assert [event.hashes for event in events if isinstance(event, PolicyHashed)] == [{"a": "1"}, {"a": "2"}]
    assert sum(isinstance(event, PolicyReady) for event in events) == 2


def test_unreadable_files_are_logged(
    play: Callable[[list[ActorHealth], list[Any]], list[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wpray"):
        events = play([LOADED], [_gone_on(PermissionError("vlm.safetensors"))])
    assert events[-1] == PolicyHashed({})
    assert "does not know what it was loaded from: PermissionError: vlm.safetensors" in caplog.text


def _thread_died() -> Exception:
    return _gone_on(ThreadDiedError("the thread policy died: MemoryError"))


def test_a_replica_whose_thread_has_died_is_replaced(
    play: Callable[[list[Any], list[Any]], list[Event]], killed: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wpray"):
        events = play([LOADED, _thread_died(), ActorHealth(0.0), LOADED], [{"a": "1"}, {"a": "1"}])
    assert [type(event) for event in events] == [PolicyReady, PolicyHashed, PolicyReady, PolicyHashed]
    assert killed == [False]
    assert "policy-0: ThreadDiedError: the thread policy died: MemoryError; it is restarted" in caplog.text


def test_a_replica_that_is_never_of_use_is_given_up(
    play: Callable[[list[Any], list[Any]], list[Event]], killed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_actor_pool, "_USELESS_INCARNATIONS", 3)
    of_use = [ActorHealth(0.0, busy_s=1.0), _thread_died(), ActorHealth(0.0)]
    events = play([_thread_died(), _thread_died(), *of_use, *[_thread_died()] * 3], [])
    assert killed == [False] * 5 + [True]
    assert [event.failure.reason for event in events if isinstance(event, PolicyLost)] == [
        "ThreadDiedError: the thread policy died: MemoryError"
    ]


class _Impl(PolicyActorImpl):
    """Policy actor that loads at once, without Ray."""

    def __init__(self) -> None:
        policy = NoopPolicy(CONTEXT.spec)
        self._answering = Batcher(policy, 1, 0.0)
        self._server = PolicyServer(self._answering, "127.0.0.1", b"key")
        self._relays, self._notices = False, NoticeKeeper()
        self._loading = ThreadPoolExecutor(1).submit(lambda: cast(LoadedReplica, LOADED.loaded))
        self._replica, self._node = 0, "node"


@pytest.mark.parametrize("thread", ["policy", "accept"])
def test_health_raises_once_a_thread_has_died(thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise ThreadDiedError("the thread died")

    shell = _Impl()
    shell._loading.result()
    assert shell.health().loaded is not None and shell.address().replica == 0
    monkeypatch.setattr(shell._answering if thread == "policy" else shell._server, "check", die)
    for ask in (shell.health, shell.address):
        with pytest.raises(ThreadDiedError):
            ask()
    shell._server.close()
    shell._answering.close()


def test_a_policy_that_exits_while_it_loads_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would handle SystemExit as the actor's own end, and restart it forever."""

    def leave(_: Config) -> None:
        raise SystemExit("no licence")

    monkeypatch.setattr(actors, "build_policy", leave)
    shell, deadline = PolicyActorImpl(0, CONTEXT), time.monotonic() + 10
    with pytest.raises(RuntimeError, match="ended its process while it loaded: SystemExit: no licence"):
        while time.monotonic() < deadline:
            shell.health()
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("error", "origin"),
    [
        (PolicyError(Failure("request", "PromptTooLongError", "65 tokens")), "request"),
        (PolicyError(Failure("policy", "RuntimeError", "sick")), "policy"),
        (PolicyOutputError("a short chunk"), "policy"),
        (RuntimeError("the simulator"), "environment"),
    ],
)
def test_an_attempt_carries_the_origin_of_its_error(error: Exception, origin: str) -> None:
    shell = object.__new__(EnvActorImpl)
    shell._policy = cast(Any, SimpleNamespace(replica=1, incarnation="incarnation"))
    assignment = Assignment(Trial(fake_tasks()[0], 0, 0), 1, "env-0")
    shell._row_context = lambda given, started: row_context(CONTEXT, given, "node", started)  # type: ignore[method-assign]
    attempt = shell._failed(assignment, datetime.now(UTC), error)
    assert attempt.failure is not None and attempt.failure.origin == origin
    assert attempt.episode.status == "error"
