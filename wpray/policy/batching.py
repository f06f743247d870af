"""Dynamic batching: requests of many episodes, answered together by one policy.

Two queues (plans, segments) and one thread that computes. While a batch computes, the next ones collect. A batch goes
when it is full or its oldest request has waited long enough; of two that may go, the one that has waited longer does,
so neither kind starves however long the other's batches take.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from wpray.policy.base import Policy
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest, Timing

_LOG = logging.getLogger(__name__)

Request = TypeVar("Request", bound=PlanRequest | SegmentRequest)
Reply = TypeVar("Reply", bound=PlanReply | SegmentReply)


class PolicyError(RuntimeError):
    """The policy raised while it answered a request, alone: its own fault, not the environment's.

    Holds text only, so that it travels to processes that have none of the policy's classes.
    """

    def __init__(self, kind: str, message: str, trace: str = "") -> None:
        super().__init__(kind, message, trace)
        self.kind, self.message, self.trace = kind, message, trace

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(slots=True)
class _Waiting(Generic[Request, Reply]):
    request: Request
    future: Future[Reply]
    since: float


class _Queue(Generic[Request, Reply]):
    """Requests of one kind, and what answers them."""

    def __init__(self, answer: Callable[[list[Request]], list[Reply]]) -> None:
        self.answer = answer
        self.waiting: deque[_Waiting[Request, Reply]] = deque()

    def due(self, max_batch_size: int, max_wait_s: float) -> float:
        """The instant at which a batch may go: now (0) if full, else when its oldest request has waited enough."""
        if len(self.waiting) >= max_batch_size:
            return 0.0
        return self.waiting[0].since + max_wait_s if self.waiting else float("inf")

    def take(self, most: int) -> list[_Waiting[Request, Reply]]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def run(self, batch: list[_Waiting[Request, Reply]]) -> None:
        """Answers a batch. One that fails is halved until only the requests at fault fail, alone.

        Halving is also what a batch that does not fit into memory needs.
        """
        failure = self._try(batch)
        if failure is None:
            return
        if len(batch) == 1:
            _LOG.warning("the policy failed on %s: %s", batch[0].request.trial.key, failure)
            batch[0].future.set_exception(failure)
            return
        middle = len(batch) // 2
        self.run(batch[:middle])
        self.run(batch[middle:])

    def _try(self, batch: list[_Waiting[Request, Reply]]) -> PolicyError | None:
        """Answers a batch; returns what went wrong, as text: the exception would keep its frames' tensors alive."""
        began = time.perf_counter()
        try:
            replies = self.answer([item.request for item in batch])
            if len(replies) != len(batch):
                raise ValueError(f"{len(replies)} replies to {len(batch)} requests")
        except Exception as error:  # whatever a policy raises belongs to its requests, never to the actor
            return PolicyError(type(error).__name__, str(error), traceback.format_exc())
        compute_s = time.perf_counter() - began
        for item, reply in zip(batch, replies, strict=True):
            timing = Timing(began - item.since, compute_s, len(batch))
            item.future.set_result(dataclasses.replace(reply, timing=timing))
        return None


class Batcher:
    """Answers requests of many threads with one policy."""

    def __init__(self, policy: Policy, max_batch_size: int, max_wait_s: float) -> None:
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._plans: _Queue[PlanRequest, PlanReply] = _Queue(policy.plan)
        self._acts: _Queue[SegmentRequest, SegmentReply] = _Queue(policy.act)
        self._changed = threading.Condition()
        self._closed = False
        self.busy_s = 0.0  # computing, in all
        self.batches = 0  # computed, in all
        self.busy_since: float | None = None  # start of the batch that computes now (monotonic), for a watchdog
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    def plan(self, request: PlanRequest) -> PlanReply:
        """Answers one plan request; blocks until its batch is done. Raises PolicyError."""
        return self._submit(self._plans, request).result()

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Answers one segment request; blocks until its batch is done. Raises PolicyError."""
        return self._submit(self._acts, request).result()

    def close(self) -> None:
        """Stops the thread after the batch in hand."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _submit(self, queue: _Queue[Request, Reply], request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        with self._changed:
            queue.waiting.append(_Waiting(request, future, time.perf_counter()))
            self._changed.notify_all()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                run = self._next()
                if run is None:
                    return
            self.busy_since = time.monotonic()
            run()
            self.busy_s += time.monotonic() - self.busy_since
            self.batches += 1
            self.busy_since = None

    def _next(self) -> Callable[[], None] | None:
        """Waits, holding the condition, until a batch may go; None when closed."""
        while not self._closed:
            plans_due, acts_due = (queue.due(self._size, self._wait_s) for queue in (self._plans, self._acts))
            now = time.perf_counter()
            if min(plans_due, acts_due) <= now:
                return self._take(self._plans) if self._oldest_is_plan(plans_due, acts_due) else self._take(self._acts)
            pause = min(plans_due, acts_due) - now
            self._changed.wait(pause if pause < 3600 else None)
        return None

    def _oldest_is_plan(self, plans_due: float, acts_due: float) -> bool:
        if plans_due == acts_due == 0.0:
            return self._plans.waiting[0].since < self._acts.waiting[0].since
        return plans_due < acts_due

    def _take(self, queue: _Queue[Request, Reply]) -> Callable[[], None]:
        batch = queue.take(self._size)
        return lambda: queue.run(batch)
