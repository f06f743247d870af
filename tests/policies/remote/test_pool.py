"""Several servers: who is asked, in which order, and that no trouble of a server reaches a question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.remote import pool as module
from wpray.policies.remote.pool import ServerPool
from wpray.policies.remote.trouble import RefusedError, ServerTrouble

LONG_S = 20.0


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.05)


class Farm:
    """Servers made of functions from (url, question) to an answer."""

    def __init__(self, answer: Callable[[str, Any], Any], max_requests: int = 1) -> None:
        self.answer, self.max_requests = answer, max_requests
        self.refuse: Callable[[str], Exception | None] = lambda url: None
        self.facts: Callable[[str], Mapping[str, Any]] = lambda url: {"url": url}
        self.opened: list[str] = []
        self.closed = 0
        self.busy: dict[str, int] = {}
        self.most_busy: dict[str, int] = {}
        self._lock = threading.Lock()

    def connect(self, url: str) -> _Channel:
        refusal = self.refuse(url)
        if refusal is not None:
            raise refusal
        self.opened.append(url)
        return _Channel(self, url)

    def work(self, url: str, question: Any) -> Any:
        with self._lock:
            self.busy[url] = self.busy.get(url, 0) + 1
            self.most_busy[url] = max(self.most_busy.get(url, 0), self.busy[url])
        try:
            return self.answer(url, question)
        finally:
            with self._lock:
                self.busy[url] -= 1


class _Channel:
    def __init__(self, farm: Farm, url: str) -> None:
        self._farm, self._url, self._closed = farm, url, False
        self.facts, self.max_requests = farm.facts(url), farm.max_requests

    def call(self, question: Any) -> Any:
        assert not self._closed
        return self._farm.work(self._url, question)

    def close(self) -> None:
        self._closed = True
        self._farm.closed += 1


def test_servers_share_the_questions_and_each_answers_one_at_a_time() -> None:
    def slow(url: str, question: int) -> int:
        time.sleep(0.005)
        return 2 * question

    farm = Farm(slow)
    pool = ServerPool("toy", ["a", "b", "c"], farm.connect)
    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(pool.call, range(90))) == [2 * number for number in range(90)]
    assert farm.most_busy == {"a": 1, "b": 1, "c": 1}
    assert sorted(farm.opened) == ["a", "b", "c"]


@pytest.mark.parametrize(("max_requests", "connections", "most"), [(4, None, 4), (4, 2, 2), (1, None, 1)])
def test_a_server_gets_as_many_requests_at_once_as_suit_it(
    max_requests: int, connections: int | None, most: int
) -> None:
    together = threading.Barrier(most)

    def answer(url: str, question: int) -> int:
        together.wait(LONG_S)
        return question

    farm = Farm(answer, max_requests)
    pool = ServerPool("toy", ["a"], farm.connect, connections)
    pool.wait_for_server()
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(pool.call, range(12))) == list(range(12))
    assert farm.most_busy == {"a": most}


def test_questions_are_answered_in_the_order_in_which_they_came() -> None:
    gate, order = threading.Event(), list[int]()

    def answer(url: str, question: int) -> None:
        assert gate.wait(LONG_S)
        order.append(question)

    pool = ServerPool("toy", ["a"], Farm(answer).connect)
    with ThreadPoolExecutor(20) as threads:
        for number in range(20):
            threads.submit(pool.call, number)
            while len(pool._waiters) < number:
                time.sleep(0.001)
        gate.set()
    assert order == list(range(20))


def test_a_question_in_trouble_is_asked_again_elsewhere_and_said_once() -> None:
    lines: list[str] = []

    def answer(url: str, question: int) -> str:
        if url == "bad":
            raise ServerTrouble("it answers nonsense")
        return url

    farm = Farm(answer)
    pool = ServerPool("toy", ["bad", "good"], farm.connect, note=lines.append)
    assert [pool.call(number) for number in range(20)] == ["good"] * 20
    assert [line for line in lines if "bad" in line] == [
        "toy: bad does not answer (it answers nonsense); requests are retried until it does"
    ]
    assert farm.closed >= 1  # a connection in trouble is not used again


def test_a_server_that_comes_back_is_used_again_and_said_to_be_back() -> None:
    lines: list[str] = []
    ill = threading.Event()
    ill.set()

    def answer(url: str, question: int) -> int:
        if ill.is_set():
            raise ServerTrouble("connection lost")
        return question

    pool = ServerPool("toy", ["a"], Farm(answer).connect, note=lines.append)
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(pool.call, number) for number in range(5)]
        time.sleep(0.2)
        assert not any(answer.done() for answer in answers)
        ill.clear()
        assert [answer.result(LONG_S) for answer in answers] == list(range(5))
    assert len(lines) == 2 and "answers again" in lines[1]


def test_a_long_absence_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMIND_S", 0.1)
    lines: list[str] = []
    began = time.monotonic()

    def answer(url: str, question: int) -> int:
        if time.monotonic() - began < 0.5:
            raise ServerTrouble("connection refused")
        return question

    ServerPool("toy", ["a"], Farm(answer).connect, note=lines.append).call(1)
    assert 3 <= len(lines) <= 8 and all("waiting" in line for line in lines[1:-1])


def test_a_servers_own_error_is_the_answer_and_the_next_question_gets_a_new_connection() -> None:
    def answer(url: str, question: int) -> int:
        if question < 0:
            raise InvalidRequestError("ValueError: negative")
        return question

    farm = Farm(answer)
    pool = ServerPool("toy", ["a"], farm.connect)
    with pytest.raises(InvalidRequestError, match="negative"):
        pool.call(-1)
    assert pool.call(1) == 1
    assert farm.opened == ["a", "a"] and farm.closed == 1


def test_meeting_waits_for_the_first_server_and_keeps_what_it_says_of_itself() -> None:
    missing = {"a", "b"}
    farm = Farm(lambda url, question: url)
    farm.refuse = lambda url: ServerTrouble("connection refused") if url in missing else None
    lines: list[str] = []
    pool = ServerPool("toy", ["a", "b"], farm.connect, note=lines.append)
    with ThreadPoolExecutor(1) as threads:
        met = threads.submit(pool.wait_for_server)
        time.sleep(0.1)
        assert not met.done() and len(lines) == 2
        missing.remove("b")
        met.result(LONG_S)
    assert pool.facts == {"b": {"url": "b"}}


@pytest.mark.parametrize("refusal", [RefusedError("HTTP status 401 Unauthorized"), BadInputError("two cameras")])
def test_a_refusal_ends_the_meeting_with_one_line(refusal: Exception) -> None:
    farm = Farm(lambda url, question: url)
    farm.refuse = lambda url: refusal
    pool = ServerPool("toy", ["a"], farm.connect)
    with pytest.raises(BadInputError, match=f"toy: a refuses this client .{refusal}"):
        pool.wait_for_server()


def test_a_server_that_comes_back_as_another_is_said() -> None:
    lines: list[str] = []
    checkpoints = iter(["one", "two", "two"])

    def answer(url: str, question: int) -> int:
        if question == 1 and len(farm.opened) == 1:
            raise ServerTrouble("connection lost")
        return question

    farm = Farm(answer)
    farm.facts = lambda url: {"checkpoint": next(checkpoints)}
    pool = ServerPool("toy", ["a"], farm.connect, note=lines.append)
    assert [pool.call(number) for number in range(3)] == [0, 1, 2]
    assert any("is not what it was" in line and "two" in line for line in lines)


def test_closing_hangs_up() -> None:
    farm = Farm(lambda url, question: url)
    pool = ServerPool("toy", ["a", "b"], farm.connect)
    pool.wait_for_server()
    pool.close()
    assert farm.closed == 2
