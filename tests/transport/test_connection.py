"""Connections between env actors and a policy: authentication, answers, and the end of either side."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, answer_challenge, deliver_challenge
from typing import Any

import numpy as np
import pytest

from wpray.errors import InvalidRequestError, ThreadDiedError
from wpray.policies.base import PolicySpec
from wpray.policies.batching import Batcher
from wpray.policies.request_queue import PolicyError
from wpray.transport import connection
from wpray.transport.connection import Address, PendingConnections
from wpray.transport.policy_connection import PolicyServer, SocketPolicyClient
from wpray.types import Observation, PlanReply, PlanRequest, SegmentReply, SegmentRequest, Task, Trial, WaypointPlan

KEY = b"k" * 32
SPEC = PolicySpec("toy", images=False, privileged=False, num_gpus=0, max_batch_size=8)
TASK = Task("toy", 0, "toy", "do it", num_trials=1000, max_steps=10)
LONG_S = 30.0


class Policy:
    """Policy that answers with the trial's number, unless `harm` raises; `gate` holds every batch while closed."""

    spec = SPEC

    def __init__(self, harm: Callable[[int], object] = lambda _: None) -> None:
        self.harm = harm
        self.asked: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        self.asked += [request.trial.init_state for request in requests]
        assert self.gate.wait(LONG_S)
        return [self._reply(request.trial.init_state) for request in requests]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        raise NotImplementedError

    def _reply(self, number: int) -> PlanReply:
        odd: Any = self.harm(number)
        return PlanReply(WaypointPlan(np.full(8, number, np.float32), np.zeros((1, 8), np.float32), np.zeros(1)), odd)


def request(number: int) -> PlanRequest:
    return PlanRequest(Trial(TASK, number, 0), 0, 0, Observation(np.zeros(8)))


@contextmanager
def serving(policy: Policy) -> Iterator[PolicyServer]:
    batcher = Batcher(policy, 8, 0.0)
    server = PolicyServer(batcher, "127.0.0.1", KEY)
    try:
        yield server
    finally:
        policy.gate.set()
        server.close()
        batcher.close()


def address(server: PolicyServer, replica: int = 0) -> Address:
    return Address(server.host, server.port, replica, "node", server.clients, server.incarnation)


def client(*servers: PolicyServer) -> SocketPolicyClient:
    """Return a client that connects to the first server, then to the next ones, and at last to the last one only."""
    left = list(servers)
    return SocketPolicyClient(SPEC, lambda: address(left.pop(0) if len(left) > 1 else left[0]), KEY, lambda: None)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_request_whose_env_actor_has_hung_up_is_not_computed() -> None:
    policy = Policy()
    with serving(policy) as server, ThreadPoolExecutor(3) as pool:
        policy.gate.clear()
        held = pool.submit(client(server).plan, request(9))
        until(lambda: policy.asked == [9])
        leaving, other = connection._connect(address(server)), client(server)
        answer_challenge(leaving, KEY)
        deliver_challenge(leaving, KEY)
        leaving.send(connection._Message(request(1), is_retry=True))
        until(lambda: len(server._batcher._plans.waiting) == 1)
        leaving.close()
        answered = pool.submit(other.plan, request(2))
        until(lambda: len(server._batcher._plans.waiting) == 2)
        policy.gate.set()
        assert int(answered.result(LONG_S).plan.start[0]) == 2
        held.result(LONG_S)
        assert policy.asked == [9, 2]


@pytest.mark.parametrize(
    ("raised", "origin"), [(InvalidRequestError("no image"), "request"), (SystemExit("bye"), "policy")], ids=repr
)
def test_the_origin_of_an_error_travels_with_it(raised: BaseException, origin: str) -> None:
    def harm(number: int) -> None:
        if number == 1:
            raise raised

    with serving(Policy(harm)) as server:
        asking = client(server)
        with pytest.raises(PolicyError) as error:
            asking.plan(request(1))
        assert (error.value.failure.kind, error.value.failure.origin) == (type(raised).__name__, origin)
        assert int(asking.plan(request(2)).plan.start[0]) == 2


def test_a_reply_that_cannot_be_sent_is_the_policys_error() -> None:
    with serving(Policy(lambda number: (lambda: None) if number == 1 else None)) as server:
        asking = client(server)
        with pytest.raises(PolicyError, match="pickle"):
            asking.plan(request(1))
        assert int(asking.plan(request(2)).plan.start[0]) == 2
        assert asking.connected_to == server.incarnation


def test_a_policy_whose_thread_has_died_hangs_up_so_that_another_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RETRY_S", 0.0)

    def die(*_: object) -> None:
        raise MemoryError

    with serving(Policy()) as dying, serving(Policy()) as sound:
        monkeypatch.setattr(dying._batcher._plans, "run", die)
        asking = client(dying, dying, sound)
        assert int(asking.plan(request(3)).plan.start[0]) == 3
        assert asking.incarnation == sound.incarnation
        with pytest.raises(ThreadDiedError):
            dying._batcher.check()
        until(lambda: dying.clients == 0)


def test_a_broken_listener_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CHECK_S", 0.05)
    with serving(Policy()) as server:
        server.check()
        os.close(server._listener.detach())  # as if the policy's code had closed it
        until(lambda: not server._thread.is_alive())
        with pytest.raises(ThreadDiedError, match="the thread accept died: OSError"):
            server.check()


def test_a_server_that_is_closed_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CHECK_S", 0.05)
    with serving(Policy()) as server:
        server.close()
        until(lambda: not server._thread.is_alive())
        server.check()


def test_a_machine_without_threads_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RETRY_S", 0.0)
    left, real = [2], connection.WatchedThread

    def scarce(name: str, work: Callable[[], None]) -> Any:
        if name == "connection" and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        return real(name, work)

    monkeypatch.setattr(connection, "WatchedThread", scarce)
    with serving(Policy()) as server:
        assert int(client(server).plan(request(3)).plan.start[0]) == 3
        assert left == [0] and not server._strangers._since
        server.check()


def _ended(connection: Connection) -> bool:
    return connection.poll(0)  # nothing is ever sent to it


def test_strangers_are_hung_up_on_once_they_are_late_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_STRANGERS", 3)
    now = [0.0]
    strangers, pairs = PendingConnections(lambda: now[0]), [Pipe() for _ in range(5)]
    for (here, _), at in zip(pairs, (0.0, 1.0, 2.0, 3.0, 4.0), strict=True):
        now[0] = at
        strangers.add(here)
    assert [_ended(there) for _, there in pairs] == [True, True, False, False, False]
    strangers.remove(pairs[2][0])  # has authenticated
    now[0] = 3.0 + connection._AUTHENTICATE_S
    strangers.hang_up_on_the_late()
    assert [_ended(there) for _, there in pairs] == [True, True, False, True, False]
    pairs[4][0].close()  # by its thread, which says so first
    strangers.remove(pairs[4][0])
    now[0] += 100
    strangers.hang_up_on_the_late()
    assert not _ended(pairs[2][1])


def _connections() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "connection"}


def test_silent_strangers_hold_no_thread_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CHECK_S", 0.05)
    before = _connections()
    with serving(Policy()) as server:
        silent = [socket.create_connection((server.host, server.port)) for _ in range(300)]
        until(lambda: len(server._strangers._since) == 300)
        asking = client(server)
        assert int(asking.plan(request(3)).plan.start[0]) == 3
        monkeypatch.setattr(connection, "_AUTHENTICATE_S", 0.0)
        until(lambda: len(_connections() - before) == 1)
        assert server.clients == 1
        assert int(asking.plan(request(4)).plan.start[0]) == 4, "an env actor that is silent for long is no stranger"
        for stranger in silent:
            stranger.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 4096 else max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_as_many_env_actors_as_a_run_has_connect_at_once_beside_strangers() -> None:
    """All of them have connected before the first has authenticated, and the strangers came before."""
    with serving(Policy()) as server:
        silent = [socket.create_connection((server.host, server.port)) for _ in range(300)]
        connected = [connection._connect(address(server)) for _ in range(500)]
        for opened in connected:
            answer_challenge(opened, KEY)
            deliver_challenge(opened, KEY)
        until(lambda: server.clients == 500)
        for closed in (*connected, *silent):
            closed.close()


def test_something_else_at_the_address_is_not_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port of a dead replica may belong to another program."""
    monkeypatch.setattr(connection, "_RETRY_S", 0.0)
    with serving(Policy()) as server, socket.create_server(("127.0.0.1", 0)) as other:
        places = [Address("127.0.0.1", other.getsockname()[1], 0, "node", 0, "old"), address(server)]
        asking = SocketPolicyClient(SPEC, lambda: places.pop(0), KEY, lambda: None)
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(asking.plan, request(3))
            accepted, _ = other.accept()
            accepted.sendall(b"\0\0\0\4\r\nHi")
            assert int(reply.result(LONG_S).plan.start[0]) == 3
            accepted.close()
