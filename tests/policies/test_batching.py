"""Dynamic batching: who is answered together, how long anybody waits, and that one bad request fails alone."""

from __future__ import annotations

import dataclasses
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from wpray.errors import InvalidRequestError, ThreadDiedError
from wpray.policies import request_queue
from wpray.policies.base import PolicySpec
from wpray.policies.batching import Batcher
from wpray.policies.request_queue import PolicyError
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    Observation,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Task,
    Trial,
    WaypointPlan,
)

TASK = Task("toy", 0, "toy", "do it", num_trials=1000, max_steps=10)
LONG_S = 30.0  # a wait that no test may see the end of


class RecordingPolicy:
    """Answers each request with its own number; holds every batch while `gate` is closed."""

    spec = PolicySpec("recording", images=False, privileged=False, num_gpus=0, max_batch_size=64)

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.poison = frozenset(poison)
        self.batches: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.holding = threading.Event()

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        numbers = self._note("plan", requests)
        return [PlanReply(_plan(number), None) for number in numbers]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        return [SegmentReply(Segment(np.full((1, 7), float(number)))) for number in self._note("act", requests)]

    def _note(self, kind: str, requests: Sequence[PlanRequest] | Sequence[SegmentRequest]) -> list[int]:
        numbers = [request.trial.init_state for request in requests]
        self.batches.append((kind, numbers))
        self.holding.set()
        assert self.gate.wait(LONG_S)
        bad = self.poison.intersection(numbers)
        if bad:
            raise FloatingPointError(f"cannot answer {sorted(bad)}")
        return numbers


def _plan(number: int) -> WaypointPlan:
    return WaypointPlan(np.full(8, number, np.float32), np.zeros((1, 8), np.float32), np.zeros(1, np.int64))


def plan_request(number: int) -> PlanRequest:
    return PlanRequest(Trial(TASK, number, 0), 0, 0, Observation(np.zeros(8)))


def act_request(number: int) -> SegmentRequest:
    nowhere = np.zeros(8, np.float32)
    return SegmentRequest(Trial(TASK, number, 0), 0, 0, Observation(np.zeros(8)), nowhere, nowhere, 1)


class Clients:
    """Many threads, each with one request."""

    def __init__(self, policy: RecordingPolicy, batcher: Batcher, pool: ThreadPoolExecutor) -> None:
        self.policy, self.batcher, self._pool = policy, batcher, pool

    def plan(
        self, number: int, announce: Callable[[], None] | None = None, gone: Callable[[], bool] | None = None
    ) -> Future[PlanReply]:
        return self._submit(
            lambda: self.batcher.plan(plan_request(number), announce, gone), self.batcher._plans.waiting
        )

    def act(self, number: int) -> Future[SegmentReply]:
        return self._submit(lambda: self.batcher.act(act_request(number)), self.batcher._acts.waiting)

    def hold(self) -> Future[PlanReply]:
        """Keeps the policy busy with a request of its own until `policy.gate` opens, so that others queue up."""
        self.policy.gate.clear()
        held = self.plan(999)
        assert self.policy.holding.wait(LONG_S)
        return held

    def _submit(self, ask: Callable[[], object], waiting: Sequence[object]) -> Future:  # type: ignore[type-arg]
        """Returns once the request is queued (or taken), so that requests arrive in order."""
        before, batches = len(waiting), len(self.policy.batches)
        future = self._pool.submit(ask)
        deadline = time.monotonic() + LONG_S
        while len(waiting) <= before and len(self.policy.batches) == batches and not future.done():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        return future


@contextmanager
def _clients(policy: RecordingPolicy, size: int, wait_s: float) -> Iterator[Clients]:
    batcher = Batcher(policy, size, wait_s)
    with ThreadPoolExecutor(64) as pool:
        try:
            yield Clients(policy, batcher, pool)
        finally:
            policy.gate.set()
    batcher.close()


def test_a_full_batch_goes_at_once_and_each_gets_its_own_answer() -> None:
    with _clients(RecordingPolicy(), size=4, wait_s=LONG_S) as clients:
        began = time.monotonic()
        replies = [clients.plan(number) for number in range(4)]
        assert [int(reply.result(LONG_S).plan.start[0]) for reply in replies] == [0, 1, 2, 3]
        assert time.monotonic() - began < LONG_S / 2
        assert clients.policy.batches == [("plan", [0, 1, 2, 3])]
        assert {reply.result().timing.batch_size for reply in replies} == {4}


def test_a_lone_request_waits_for_company_as_long_as_it_may_and_no_longer() -> None:
    with _clients(RecordingPolicy(), size=4, wait_s=0.2) as clients:
        began = time.monotonic()
        reply = clients.act(7).result(LONG_S)
        assert 0.19 <= time.monotonic() - began < 5
        assert 0.19 <= reply.timing.queue_s < 5
        assert reply.timing.batch_size == 1


def test_requests_that_come_while_a_batch_computes_go_together_in_order() -> None:
    with _clients(RecordingPolicy(), size=3, wait_s=0.0) as clients:
        held = clients.hold()
        replies = [clients.plan(number) for number in range(5)]
        clients.policy.gate.set()
        for reply in (held, *replies):
            reply.result(LONG_S)
        assert clients.policy.batches == [("plan", [999]), ("plan", [0, 1, 2]), ("plan", [3, 4])]


class PaddingPolicy(RecordingPolicy):
    """Computes batches of 4 and of 8, each as long as `seconds` says."""

    segment_sizes = (4, 8)

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self.seconds = seconds

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        time.sleep(self.seconds[4 if len(requests) <= 4 else 8])
        return super().act(requests)


@pytest.mark.parametrize(
    ("seconds", "then"),
    [({4: 0.05, 8: 0.1}, [4, 1]), ({4: 0.09, 8: 0.1}, [5])],
    ids=["what it computes is dear", "starting is dear"],
)
def test_a_batch_fills_a_size_where_that_answers_more_a_second(seconds: dict[int, float], then: list[int]) -> None:
    with _clients(PaddingPolicy(seconds), size=8, wait_s=0.01) as clients:
        for count in (5, 4, 5):  # what the second size takes is not known the first time
            held = clients.hold()
            replies = [clients.act(number) for number in range(count)]
            clients.policy.gate.set()
            for number, reply in enumerate(replies):
                assert reply.result(LONG_S).segment.actions[0, 0] == number
            held.result(LONG_S)
        assert [len(numbers) for kind, numbers in clients.policy.batches if kind == "act"] == [5, 4, *then]


def test_plans_and_segments_are_never_mixed_and_the_older_batch_goes_first() -> None:
    with _clients(RecordingPolicy(), size=8, wait_s=0.0) as clients:
        held = clients.hold()
        replies = [clients.act(1), clients.plan(2), clients.act(3), clients.plan(4)]
        clients.policy.gate.set()
        for reply in (held, *replies):
            reply.result(LONG_S)
        assert clients.policy.batches[1:] == [("act", [1, 3]), ("plan", [2, 4])]


def test_full_batches_of_one_kind_do_not_starve_the_other() -> None:
    with _clients(RecordingPolicy(), size=2, wait_s=0.0) as clients:
        held = clients.hold()
        plans = [clients.plan(number) for number in range(2)]
        act = clients.act(50)
        plans += [clients.plan(number) for number in range(2, 10)]
        clients.policy.gate.set()
        for reply in (held, act, *plans):
            reply.result(LONG_S)
        assert clients.policy.batches.index(("act", [50])) <= 2


@pytest.mark.parametrize("poison", [[5], [0, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_halving_isolates_the_requests_at_fault_and_answers_all_others(poison: list[int]) -> None:
    with _clients(RecordingPolicy(poison), size=8, wait_s=LONG_S) as clients:
        replies = [clients.plan(number) for number in range(8)]
        for number, reply in enumerate(replies):
            if number in poison:
                error = reply.exception(LONG_S)
                assert isinstance(error, PolicyError)
                assert (error.failure.kind, error.failure.message) == (
                    "FloatingPointError",
                    f"cannot answer [{number}]",
                )
                assert "Traceback" in error.failure.traceback
            else:
                assert int(reply.result(LONG_S).plan.start[0]) == number
        assert len(clients.policy.batches) <= 1 + 2 * len(poison) * math.log2(8)
        clients.policy.poison = frozenset()
        again = [clients.plan(number) for number in range(8)]
        assert [int(reply.result(LONG_S).plan.start[0]) for reply in again] == list(range(8))


@pytest.mark.parametrize("answer", [[], None, [None], ["x", "y"]])
def test_an_answer_that_makes_no_sense_fails_its_request_and_not_the_batcher(answer: object) -> None:
    policy = RecordingPolicy()
    sound = policy.plan
    policy.plan = lambda requests: answer  # type: ignore[method-assign, assignment, return-value]
    with _clients(policy, size=1, wait_s=0.0) as clients:
        with pytest.raises(PolicyError):
            clients.batcher.plan(plan_request(1))
        clients.batcher._plans.answer = sound
        assert int(clients.batcher.plan(plan_request(2)).plan.start[0]) == 2


@pytest.mark.parametrize(
    ("replies", "hint"),
    [
        (None, "predict must return a list of ChunkReply, not NoneType"),
        (np.zeros((1, 8, 7)), "predict must return a list of ChunkReply, not ndarray"),
        ([np.zeros((8, 7))], "predict must return a list of ChunkReply, not of ndarray"),
        ([PlanReply(_plan(1), None)], "predict must return a list of ChunkReply, not of PlanReply"),
        ([ChunkReply(np.zeros((8, 7)))] * 2, "2 replies to 1 requests"),
    ],
)
def test_what_is_no_list_of_replies_is_named(replies: object, hint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=hint):
        request_queue.checked_replies("predict", replies, 1)


def test_the_batcher_tells_a_watchdog_how_long_it_has_been_computing() -> None:
    with _clients(RecordingPolicy(), size=1, wait_s=0.0) as clients:
        assert clients.batcher.busy_since is None
        held = clients.hold()
        assert clients.batcher.busy_since is not None
        assert time.monotonic() - clients.batcher.busy_since < LONG_S
        clients.policy.gate.set()
        held.result(LONG_S)
        deadline = time.monotonic() + LONG_S
        while clients.batcher.busy_since is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert clients.batcher.busy_since is None
        assert clients.batcher.busy_s > 0
        assert clients.batcher.batches == 1


class _PreparingPolicy(RecordingPolicy):
    """Notes which requests it has prepared; cannot prepare `bad` ones."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        super().__init__()
        self.bad, self.prepared = frozenset(bad), list[int]()

    def prepare(self, request: PlanRequest) -> PlanRequest:
        if request.trial.init_state in self.bad:
            raise ValueError("no image")
        self.prepared.append(request.trial.init_state)
        return replace(request, plan_index=7)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        assert all(request.plan_index == 7 for request in requests)
        return super().plan(requests)


def test_requests_are_prepared_while_another_batch_computes() -> None:
    policy = _PreparingPolicy()
    with _clients(policy, size=4, wait_s=0.0) as clients:
        held = clients.hold()
        replies = [clients.plan(number) for number in range(4)]
        assert sorted(policy.prepared) == [0, 1, 2, 3, 999]
        assert policy.batches == [("plan", [999])]
        assert not held.done()
        policy.gate.set()
        assert [int(reply.result(LONG_S).plan.start[0]) for reply in replies] == [0, 1, 2, 3]


def test_a_request_that_cannot_be_prepared_fails_at_once_and_joins_no_batch() -> None:
    policy = _PreparingPolicy(bad=[2])
    with _clients(policy, size=4, wait_s=0.0) as clients:
        held = clients.hold()
        with pytest.raises(PolicyError, match="ValueError: no image"):
            clients.batcher.plan(plan_request(2))
        assert not held.done()


def test_a_request_that_may_kill_is_announced_before_anything_is_done_for_it() -> None:
    policy = _PreparingPolicy()
    asked: list[list[int]] = []
    sound = policy.plan
    policy.plan = lambda requests: sound([policy.prepare(request) for request in requests])  # type: ignore[method-assign]
    with _clients(policy, size=4, wait_s=0.0) as clients:
        clients.batcher.plan(plan_request(3), announce=lambda: asked.append(list(policy.prepared)))
    assert asked == [[]]
    assert policy.prepared == [3]


def test_running_out_of_gpu_memory_halves_the_batch_and_says_so_in_the_timings() -> None:
    torch = pytest.importorskip("torch")
    policy = RecordingPolicy()
    sound = policy.act

    def act(requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        time.sleep(0.01)
        if len(requests) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sound(requests)

    policy.act = act  # type: ignore[method-assign]
    with _clients(policy, size=8, wait_s=LONG_S) as clients:
        replies = [clients.act(number) for number in range(8)]
        answers = [reply.result(LONG_S) for reply in replies]
    assert [float(answer.segment.actions[0, 0]) for answer in answers] == [float(number) for number in range(8)]
    assert policy.batches == [("act", [0, 1]), ("act", [2, 3]), ("act", [4, 5]), ("act", [6, 7])]
    assert {answer.timing.batch_size for answer in answers} == {2}
    # The time of what failed is waiting: by the last of four, two failures and three answers.
    assert answers[-1].timing.queue_s >= 0.01 * 6 > answers[-1].timing.compute_s >= 0.01


def test_many_clients_of_both_kinds_all_get_their_own_answer() -> None:
    def converse(batcher: Batcher, number: int) -> list[float]:
        answers = []
        for _ in range(10):
            answers.append(float(batcher.plan(plan_request(number)).plan.start[0]))
            answers.append(float(batcher.act(act_request(number)).segment.actions[0, 0]))
        return answers

    policy = RecordingPolicy()
    batcher = Batcher(policy, 8, 0.001)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: converse(batcher, number), range(20)))
    batcher.close()
    assert answers == [[float(number)] * 20 for number in range(20)]
    assert max(len(numbers) for _, numbers in policy.batches) <= 8


def _announce() -> None: ...


def test_requests_that_must_be_isolated_are_answered_in_their_turn() -> None:
    with _clients(RecordingPolicy(), size=4, wait_s=0.0) as clients:
        held = clients.hold()
        replies = [clients.plan(number, _announce if number in (3, 6, 7) else None) for number in range(1, 10)]
        clients.policy.gate.set()
        for reply in (held, *replies):
            reply.result(LONG_S)
    assert [numbers for _, numbers in clients.policy.batches[1:]] == [[1, 2], [3], [4, 5], [6], [7], [8, 9]]


def test_nobody_waits_for_company_that_may_not_join() -> None:
    with _clients(RecordingPolicy(), size=4, wait_s=LONG_S) as clients:
        began = time.monotonic()
        replies = [clients.plan(1), clients.plan(2, _announce)]
        assert [int(reply.result(LONG_S).plan.start[0]) for reply in replies] == [1, 2]
        assert time.monotonic() - began < LONG_S / 2
    assert clients.policy.batches == [("plan", [1]), ("plan", [2])]


def test_equal_requests_are_two_requests() -> None:
    """An env actor that died has left its request; the retry of its trial sends the same one."""
    with _clients(RecordingPolicy(), size=4, wait_s=0.0) as clients:
        held = clients.hold()
        replies = [clients.plan(3, _announce), clients.plan(3), clients.plan(3), clients.plan(3, _announce)]
        clients.policy.gate.set()
        for reply in (held, *replies):
            reply.result(LONG_S)
    assert [numbers for _, numbers in clients.policy.batches[1:]] == [[3], [3, 3], [3]]


@pytest.mark.parametrize("announce", [None, _announce], ids=["in a batch", "alone"])
def test_a_request_whose_asker_has_gone_is_not_computed(announce: Callable[[], None] | None) -> None:
    with _clients(RecordingPolicy(), size=2, wait_s=0.0) as clients:
        held = clients.hold()
        left = [clients.plan(number, announce, gone=lambda: True) for number in (1, 2)]
        replies = [clients.plan(3), clients.plan(4, gone=lambda: False), clients.plan(5)]
        clients.policy.gate.set()
        for reply in (held, *replies):
            reply.result(LONG_S)
        for dropped in left:
            with pytest.raises(ConnectionResetError, match="has gone"):
                dropped.result(LONG_S)
    assert [numbers for _, numbers in clients.policy.batches[1:]] == [[3, 4], [5]]


class _ExitingPolicy(RecordingPolicy):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        raise self.error

    def prepare(self, request: PlanRequest) -> PlanRequest:
        if request.trial.init_state == 1:
            raise self.error
        return request


@pytest.mark.parametrize(
    "error", [SystemExit("enough"), KeyboardInterrupt("enough"), GeneratorExit("enough")], ids=repr
)
def test_a_policy_that_would_end_its_process_fails_its_request_only(error: BaseException) -> None:
    with _clients(_ExitingPolicy(error), size=1, wait_s=0.0) as clients:
        for reply in (clients.act(7), clients.plan(1)):
            with pytest.raises(PolicyError, match=f"{type(error).__name__}: enough"):
                reply.result(LONG_S)
        assert int(clients.plan(2).result(LONG_S).plan.start[0]) == 2
        clients.batcher.check()


@pytest.mark.parametrize("error", [MemoryError("no more"), SystemExit("no more")], ids=repr)
def test_whatever_ends_the_thread_fails_every_request(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def die(*_: object) -> None:
        raise error

    batcher = Batcher(policy := RecordingPolicy(), 1, 0.0)
    batcher.check()
    with ThreadPoolExecutor(64) as pool:
        clients = Clients(policy, batcher, pool)
        held = clients.hold()
        waiting = [clients.plan(1), clients.act(2), clients.plan(3, _announce)]
        monkeypatch.setattr(request_queue.RequestQueue, "run", die)
        policy.gate.set()
        held.result(LONG_S)
        for reply in waiting:
            with pytest.raises(ThreadDiedError, match=r"policy died: .*no more"):
                reply.result(LONG_S)
    with pytest.raises(ThreadDiedError):
        batcher.plan(plan_request(4))
    with pytest.raises(ThreadDiedError, match=f"policy died: {type(error).__name__}: no more"):
        batcher.check()
    assert "the thread policy died" in caplog.text
    batcher.close()


def test_a_closed_batcher_leaves_nobody_waiting() -> None:
    batcher = Batcher(policy := RecordingPolicy(), 1, 0.0)
    with ThreadPoolExecutor(64) as pool:
        clients = Clients(policy, batcher, pool)
        held, waiting = clients.hold(), clients.plan(1)
        closing = pool.submit(batcher.close)
        while not batcher._closed:
            time.sleep(0.001)
        policy.gate.set()
        closing.result(LONG_S)
        held.result(LONG_S)
        for fails in (lambda: waiting.result(LONG_S), lambda: batcher.act(act_request(2))):
            with pytest.raises(ThreadDiedError):
                fails()


class _ParticularPolicy(RecordingPolicy):
    """Cannot answer request 2, nor prepare request 5."""

    def prepare(self, request: PlanRequest) -> PlanRequest:
        if request.trial.init_state == 5:
            raise InvalidRequestError("has no image")
        return request

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        if any(request.trial.init_state == 2 for request in requests):
            raise InvalidRequestError("has no image")
        return super().plan(requests)


def test_an_invalid_request_is_told_from_a_policy_that_fails() -> None:
    with _clients(_ParticularPolicy(poison=[3]), size=4, wait_s=0.0) as clients:
        held = clients.hold()
        replies = {number: clients.plan(number) for number in (1, 2, 3, 4)} | {5: clients.plan(5)}
        clients.policy.gate.set()
        held.result(LONG_S)
        errors = {number: reply.exception(LONG_S) for number, reply in replies.items()}
    assert errors[1] is None and errors[4] is None
    for number in (2, 3, 5):
        error = pickle.loads(pickle.dumps(errors[number]))  # as it travels
        assert isinstance(error, PolicyError)
        assert error.failure.origin == ("policy" if number == 3 else "request")
        assert error.failure.kind == ("FloatingPointError" if number == 3 else "InvalidRequestError")


def test_a_watchdog_sees_a_preparation_that_does_not_end() -> None:
    class Stuck(RecordingPolicy):
        def prepare(self, request: PlanRequest) -> PlanRequest:
            assert self.gate.wait(LONG_S)
            return request

    policy = Stuck()
    policy.gate.clear()
    batcher = Batcher(policy, 1, 0.0)
    with ThreadPoolExecutor(2) as pool:
        reply = pool.submit(lambda: batcher.plan(plan_request(1)))
        deadline = time.monotonic() + LONG_S
        while batcher.busy_since is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert batcher.busy_since is not None and batcher.batches == 0
        policy.gate.set()
        assert int(reply.result(LONG_S).plan.start[0]) == 1
    batcher.close()
    assert batcher.busy_since is None


class ChunkNumbers:
    """Chunk policy that answers with each request's number, which preparing raises by 100."""

    spec = PolicySpec("chunks", False, False, num_gpus=0, max_batch_size=8, kind="chunk")

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def prepare(self, request: ChunkRequest) -> ChunkRequest:
        return dataclasses.replace(request, chunk_index=request.chunk_index + 100)

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        self.batches.append([request.chunk_index for request in requests])
        if any(request.chunk_index == 103 for request in requests):
            raise InvalidRequestError("the third is not for me")
        return [ChunkReply(np.full((1, 7), float(request.chunk_index))) for request in requests]


def test_chunks_are_prepared_batched_and_answered_each() -> None:
    policy = ChunkNumbers()
    batcher = Batcher(policy, 4, 10.0)  # so long that only full batches go
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(batcher.predict, ChunkRequest(_trial(0), number, _seen())) for number in (0, 1, 2, 4)]
            replies = [future.result(LONG_S) for future in asked]
        assert [reply.actions[0, 0] for reply in replies] == [100, 101, 102, 104]
        assert [sorted(batch) for batch in policy.batches] == [[100, 101, 102, 104]]
        assert [reply.timing.batch_size for reply in replies] == [4] * 4
    finally:
        batcher.close()


def test_a_chunk_at_fault_fails_alone() -> None:
    batcher = Batcher(ChunkNumbers(), 2, 10.0)
    try:
        with ThreadPoolExecutor(2) as pool:
            good, bad = (pool.submit(batcher.predict, ChunkRequest(_trial(0), number, _seen())) for number in (1, 3))
            assert good.result(LONG_S).actions[0, 0] == 101
            with pytest.raises(PolicyError, match="the third is not for me") as caught:
                bad.result(LONG_S)
        assert caught.value.failure.origin == "request"
    finally:
        batcher.close()


def test_a_request_of_another_kind_is_the_policys_error() -> None:
    batcher = Batcher(ChunkNumbers(), 1, 0.0)
    try:
        with pytest.raises(PolicyError, match="a policy of kind 'chunk' has no method act"):
            batcher.act(act_request(0), lambda: None)
    finally:
        batcher.close()


def _trial(number: int) -> Trial:
    return Trial(TASK, number, 0)


def _seen() -> Observation:
    return Observation(np.zeros(8))
