"""Drawing for many environments: one thread in turns, models that travel once, and the end of either side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from wpray.errors import BadInputError, ThreadDiedError
from wpray.transport import connection, drawing
from wpray.transport.connection import Address, Server
from wpray.transport.draw_connection import RENDERER_DIED, DrawError, DrawServer, SocketDrawClient
from wpray.transport.drawing import Drawing, DrawingThread, ModelWanted
from wpray.types import DrawRequest, ImageArray

KEY = b"k" * 32
LONG_S = 30.0
OPTIONS: Any = (None, lambda: False)  # no announcement; the client is there


class Slate:
    """Drawer of one pixel, which is the request's number; `gate` holds every turn while closed."""

    def __init__(self, harm: Callable[[int], object] = lambda _: None, known: Sequence[str] = ()) -> None:
        self.harm, self.learned, self.turns = harm, list(known), list[list[int]]()
        self.gate, self.closed = threading.Event(), False
        self.gate.set()

    def knows(self, model: str) -> bool:
        return model in self.learned

    def prepare(self, model: str, data: bytes) -> None:
        """Return at once."""

    def learn(self, model: str, data: bytes) -> None:
        assert data == model.encode()
        self.learned.append(model)

    def draw(self, requests: Sequence[DrawRequest]) -> list[dict[str, ImageArray]]:
        numbers = [int(request.pose["number"][0]) for request in requests]
        self.turns.append(numbers)
        assert self.gate.wait(LONG_S)
        for number in numbers:
            self.harm(number)
        return [{"base": np.full((1, 1, 3), number, np.uint8)} for number in numbers]

    def close(self) -> None:
        self.closed = True


def request(number: int, model: str = "a") -> DrawRequest:
    return DrawRequest(model, {"number": np.array([number])}, {})


@contextmanager
def thread_of(slate: Slate) -> Iterator[DrawingThread]:
    thread = DrawingThread(lambda: slate)
    try:
        yield thread
    finally:
        slate.gate.set()
        thread.close()


@contextmanager
def serving(slate: Slate) -> Iterator[DrawServer]:
    with thread_of(slate) as thread:
        server = DrawServer(thread, "127.0.0.1", KEY)
        try:
            yield server
        finally:
            server.close()


def client(*servers: Server) -> SocketDrawClient:
    """Return a client that connects to the first server, then to the next ones, and at last to the last one only."""
    left = list(servers)

    def address() -> Address:
        server = left.pop(0) if len(left) > 1 else left[0]
        return Address(server.host, server.port, 0, "node", server.clients, server.incarnation)

    return SocketDrawClient(address, KEY, lambda: None)


def drawn(asking: SocketDrawClient, number: int, model: str = "a") -> int:
    return int(asking.draw(request(number, model), model.encode)["base"][0, 0, 0])


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RETRY_S", 0.0)


def test_a_client_gets_its_pictures_and_sends_each_model_once() -> None:
    slate = Slate()
    with serving(slate) as server:
        asking, other = client(server), client(server)
        assert [drawn(asking, 1), drawn(asking, 2), drawn(other, 3), drawn(asking, 4, "b")] == [1, 2, 3, 4]
    assert slate.learned == ["a", "b"] and slate.closed


def test_others_are_drawn_while_a_model_is_prepared() -> None:
    slate, preparing, prepared = Slate(known=["a"]), threading.Event(), threading.Event()

    def prepare(model: str, data: bytes) -> None:
        assert (model, data) == ("b", b"b")
        preparing.set()
        assert prepared.wait(LONG_S)
        raise FloatingPointError("shows when it is learned, if at all")

    slate.prepare = prepare  # type: ignore[method-assign]
    with serving(slate) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(drawn, client(server), 1, "b")
        assert preparing.wait(LONG_S)
        assert drawn(client(server), 2) == 2 and not slow.done()
        thread = server._answer_with.__self__  # type: ignore[attr-defined]
        assert thread.busy_since is not None, "a model that takes too long would not be noticed"
        prepared.set()
        assert slow.result(LONG_S) == 1
        until(lambda: thread.busy_since is None)
    assert slate.turns == [[2], [1]] and slate.learned == ["a", "b"]


def test_all_that_wait_are_drawn_in_one_turn_and_an_error_is_that_requests_alone() -> None:
    def harm(number: int) -> None:
        if number == 7:
            raise FloatingPointError("a bad pose")

    slate = Slate(harm, known=["a"])
    with serving(slate) as server, ThreadPoolExecutor(4) as pool:
        slate.gate.clear()
        held = pool.submit(drawn, client(server), 1)
        until(lambda: slate.turns)
        waiting = server._answer_with.__self__._waiting  # type: ignore[attr-defined]
        later = {}
        for count, number in enumerate((2, 7, 3), start=1):
            later[number] = pool.submit(drawn, client(server), number)
            until(lambda count=count: len(waiting) >= count)
        slate.gate.set()
        assert [held.result(LONG_S), later[2].result(LONG_S), later[3].result(LONG_S)] == [1, 2, 3]
        with pytest.raises(DrawError, match="FloatingPointError: a bad pose") as error:
            later[7].result(LONG_S)
        assert error.value.failure.origin == "environment" and "in harm" in str(error.value.failure.traceback)
    assert slate.turns == [[1], [2, 7, 3], [2], [7], [3]]


def test_requests_of_one_model_wait_for_the_first_that_was_asked_for_it() -> None:
    slate = Slate()
    with thread_of(slate) as thread, ThreadPoolExecutor(2) as pool:
        assert isinstance(thread.draw(Drawing(request(1)), *OPTIONS), ModelWanted)
        second = pool.submit(thread.draw, Drawing(request(2)), *OPTIONS)
        other = pool.submit(thread.draw, Drawing(request(3, "b")), *OPTIONS)
        assert isinstance(other.result(LONG_S), ModelWanted), "a request of another model does not wait"
        until(lambda: thread._without_model)
        assert not second.done()
        thread.draw(Drawing(request(1), b"a"), *OPTIONS)
        found = second.result(LONG_S)
        assert isinstance(found, dict) and found["base"][0, 0, 0] == 2
    assert slate.learned == ["a"] and slate.turns == [[1], [2]]


def test_another_is_asked_if_a_model_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_MODEL_S", 0.05)
    with thread_of(Slate()) as thread:
        for number in range(2):
            assert isinstance(thread.draw(Drawing(request(number)), *OPTIONS), ModelWanted)


def test_a_drawer_that_was_restarted_is_sent_the_model_again() -> None:
    def die(_: str) -> bool:
        raise MemoryError

    first, second = Slate(), Slate()
    with serving(first) as dying, serving(second) as sound:
        asking = client(dying, dying, sound)
        assert drawn(asking, 1) == 1
        first.knows = die  # type: ignore[method-assign]
        assert drawn(asking, 2) == 2
        assert asking.incarnation == sound.incarnation and second.learned == ["a"]
        with pytest.raises(ThreadDiedError, match="the thread drawing died: MemoryError"):
            dying._answer_with.__self__.check()  # type: ignore[attr-defined]
        until(lambda: dying.clients == 0)


def test_a_request_that_kills_the_process_alone_is_an_error() -> None:
    def kill(_: object, announce: Callable[[], None] | None, __: object) -> None:
        if announce is not None:
            announce()
        raise EOFError  # hangs up, as a process that dies does

    server = Server(kill, "127.0.0.1", KEY)
    with pytest.raises(DrawError, match=RENDERER_DIED):
        drawn(client(server), 1)
    server.close()


def test_a_drawer_that_fails_on_everything_is_broken() -> None:
    def harm(_: int) -> None:
        raise RuntimeError("no context")

    with serving(Slate(harm, known=["a"])) as broken, serving(Slate()) as sound:
        for _ in range(drawing._MOST_FAILURES):
            with pytest.raises(DrawError, match="no context"):
                drawn(client(broken), 1)
        assert drawn(client(broken, sound), 2) == 2
        with pytest.raises(ThreadDiedError, match="3 requests in a row failed, the last one with RuntimeError"):
            broken._answer_with.__self__.check()  # type: ignore[attr-defined]


def test_nothing_is_drawn_for_a_client_that_has_gone() -> None:
    slate = Slate(known=["a"])
    with thread_of(slate) as thread, pytest.raises(ConnectionResetError):
        thread.draw(Drawing(request(1)), None, lambda: True)
    assert slate.turns == []


@pytest.mark.parametrize(
    ("raised", "kind"), [(BadInputError("no GL here"), BadInputError), (SystemExit("no GL here"), RuntimeError)]
)
def test_a_drawer_that_cannot_be_made_says_so(raised: BaseException, kind: type[Exception]) -> None:
    def make() -> Slate:
        raise raised

    with pytest.raises(kind, match="no GL here"):
        DrawingThread(make).wait_for_the_drawer()
