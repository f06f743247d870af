"""Dynamic batching: requests of many episodes, answered together by one policy.

Two queues (plans, segments) and one thread that computes. While a batch computes, the next ones collect: whoever asks
prepares the request (tokens, noise, images into page-locked memory) in its own thread, if the policy can. A batch goes
when it is full or its oldest request has waited long enough. Of two that may go, segments overtake plans for a while,
and then the one that has waited longer goes, so neither kind starves however long the other's batches take.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wpray.errors import told_as
from wpray.policy.base import Policy
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest, Timing

_LOG = logging.getLogger(__name__)

# A plan streams the VLM's weights once for each token, for one request or for many, and costs as much as several
# batches of segments. Gathering plans for three times as long gave a sixth more episodes with 40 environments.
_GATHER = 3.0
_RECENT = 0.2  # weight of the last batch in what one of its size takes
_WORTH_WAITING = 0.1  # of what a batch takes: a longer wait for company costs more than the company saves

Request = TypeVar("Request", bound=PlanRequest | SegmentRequest)
Reply = TypeVar("Reply", bound=PlanReply | SegmentReply)
Done = TypeVar("Done")


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
    alone: Callable[[], None] | None  # called before it is answered, in a batch of its own


class _Queue(Generic[Request, Reply]):
    """Requests of one kind, and what answers them."""

    def __init__(self, answer: Callable[[list[Request]], list[Reply]], sizes: Sequence[int] = ()) -> None:
        """`sizes`, ascending, are worth filling: other batches are padded to the next of them."""
        self.answer = answer
        self.cost_s: float | None = None  # what the last batch took
        self.waiting: deque[_Waiting[Request, Reply]] = deque()
        self._sizes = sizes
        self._costs_s: dict[int, float] = {}  # by requests, what a batch takes of late

    def due(self, max_batch_size: int, max_wait_s: float) -> float:
        """The instant at which a batch may go: now (0) if full, else when its oldest request has waited enough."""
        if len(self.waiting) >= max_batch_size:
            return 0.0
        if not self.waiting:
            return float("inf")
        worth_s = max_wait_s if self.cost_s is None else _WORTH_WAITING * self.cost_s
        return self.waiting[0].since + min(max_wait_s, worth_s)

    def worth_taking(self, most: int) -> int:
        """How many go together: all that wait, or only as many as fill a size, if that answers more a second."""
        count = min(len(self.waiting), most)
        full = max((size for size in self._sizes if size <= count), default=count)
        cost_s, full_cost_s = self._costs_s.get(count), self._costs_s.get(full)
        if cost_s is None or full_cost_s is None:
            return count
        return full if full / full_cost_s > count / cost_s else count

    def note_cost(self, count: int, seconds: float) -> None:
        """What a batch of `count` took."""
        self.cost_s = seconds
        known = self._costs_s.get(count, seconds)
        self._costs_s[count] = known + _RECENT * (seconds - known)

    def take(self, most: int) -> list[_Waiting[Request, Reply]]:
        """The oldest requests; those that must be alone come last, one by one."""
        batch = [item for item in self.waiting if item.alone is None][:most] or [self.waiting[0]]
        for item in batch:
            self.waiting.remove(item)
        return batch

    def run(self, batch: list[_Waiting[Request, Reply]]) -> None:
        """Answers a batch. One that fails is halved until only the requests at fault fail, alone.

        Halving is also what a batch that does not fit into memory needs.
        """
        if batch[0].alone is not None:
            batch[0].alone()
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
        """Answers a batch; returns what went wrong."""
        replies = _tried(lambda: self._timed(batch))
        if isinstance(replies, PolicyError):
            return replies
        for item, reply in zip(batch, replies, strict=True):
            item.future.set_result(reply)
        return None

    def _timed(self, batch: list[_Waiting[Request, Reply]]) -> list[Reply]:
        began = time.perf_counter()
        replies = self.answer([item.request for item in batch])
        if len(replies) != len(batch):
            raise ValueError(f"{len(replies)} replies to {len(batch)} requests")
        took_s = time.perf_counter() - began
        self.note_cost(len(batch), took_s)
        timings = [Timing(began - item.since, took_s, len(batch)) for item in batch]
        return [dataclasses.replace(reply, timing=timing) for reply, timing in zip(replies, timings, strict=True)]


def _tried(work: Callable[[], Done]) -> Done | PolicyError:
    """What the policy's `work` gives. Whatever it raises belongs to its requests, never to the actor."""
    try:
        with told_as(_in_words):
            return work()
    except PolicyError as error:
        return PolicyError(*error.args)  # another: that one's cause would keep its frames' tensors alive


def _in_words(error: Exception) -> PolicyError:
    return PolicyError(type(error).__name__, str(error), "".join(traceback.format_exception(error)))


class Batcher:
    """Answers requests of many threads with one policy."""

    def __init__(self, policy: Policy, max_batch_size: int, max_wait_s: float) -> None:
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._prepare: Callable[[Any], Any] | None = getattr(policy, "prepare", None)
        self._plans: _Queue[PlanRequest, PlanReply] = _Queue(policy.plan, getattr(policy, "plan_sizes", ()))
        self._acts: _Queue[SegmentRequest, SegmentReply] = _Queue(policy.act, getattr(policy, "segment_sizes", ()))
        self._changed = threading.Condition()
        self._closed = False
        self.busy_s = 0.0  # computing, in all
        self.batches = 0  # computed, in all
        self.busy_since: float | None = None  # start of the batch that computes now (monotonic), for a watchdog
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    def plan(self, request: PlanRequest, alone: Callable[[], None] | None = None) -> PlanReply:
        """Answers one plan request; blocks until its batch is done. Raises PolicyError.

        With `alone`, which is called just before, in a batch of its own: the request may be one that kills.
        """
        return self._submit(self._plans, request, alone).result()

    def act(self, request: SegmentRequest, alone: Callable[[], None] | None = None) -> SegmentReply:
        """Answers one segment request; blocks until its batch is done. Raises PolicyError. `alone`: as in `plan`."""
        return self._submit(self._acts, request, alone).result()

    def close(self) -> None:
        """Stops the thread after the batch in hand."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _submit(
        self, queue: _Queue[Request, Reply], request: Request, alone: Callable[[], None] | None
    ) -> Future[Reply]:
        future: Future[Reply] = Future()
        since = time.perf_counter()
        if self._prepare is not None and alone is None:  # one that may kill must not do so before it is announced
            prepare, given = self._prepare, request
            ready = _tried(lambda: prepare(given))
            if isinstance(ready, PolicyError):
                _LOG.warning("the policy failed on %s: %s", request.trial.key, ready)
                future.set_exception(ready)
                return future
            request = ready
        with self._changed:
            queue.waiting.append(_Waiting(request, future, since, alone))
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
                plan_goes = self._plan_goes(plans_due <= now, acts_due <= now)
                return self._take(self._plans) if plan_goes else self._take(self._acts)
            pause = min(plans_due, acts_due) - now
            self._changed.wait(pause if pause < 3600 else None)
        return None

    def _plan_goes(self, plan_may: bool, act_may: bool) -> bool:
        """Of two batches that may go, the one that has waited longer; but segments overtake plans that gather.

        The waits grow alike, so neither kind starves.
        """
        if plan_may and act_may:
            gather_s = _GATHER * (self._plans.cost_s or 0.0)
            return self._plans.waiting[0].since + gather_s < self._acts.waiting[0].since
        return plan_may

    def _take(self, queue: _Queue[Request, Reply]) -> Callable[[], None]:
        batch = queue.take(queue.worth_taking(self._size))
        return lambda: queue.run(batch)
