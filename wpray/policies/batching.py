"""Dynamic batching of requests of many episodes to one policy.

There is a queue for each kind of request (plans and segments, or chunks), and one thread that computes. While a batch
computes, requests collect, and the thread of each request prepares it (tokens, noise, images in page-locked memory) if
the policy supports that. A batch goes when it is full or its oldest request has waited long enough. If two may go,
segments overtake plans for a while; then the one that has waited longer goes, so neither kind starves.

Requests of one kind are answered in order of arrival. A request that must be isolated, because it may kill the process,
is a batch of its own. A request whose client has gone is dropped. If the thread ends, all requests fail, also later
ones.
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
from functools import partial
from typing import Any, Generic, TypeVar

from wpray.errors import InvalidRequestError, ThreadDiedError, wrapping_errors
from wpray.policies.base import AnyPolicy
from wpray.system.threads import WatchedThread
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    Failure,
    FailureOrigin,
    PlanReply,
    PlanRequest,
    PolicyReply,
    PolicyRequest,
    SegmentReply,
    SegmentRequest,
    Timing,
)

_LOG = logging.getLogger(__name__)
_REPLIES = {"plan": PlanReply, "act": SegmentReply, "predict": ChunkReply}  # by the policy's method

# A plan streams the VLM's weights once for each token, for one request or for many, and costs as much as several
# batches of segments. Gathering plans for three times as long gave a sixth more episodes with 40 environments.
_GATHER = 3.0
_RECENT = 0.2  # weight of the last batch in the mean duration of its size
_WORTH_WAITING = 0.1  # share of a batch's duration: a longer wait for more requests costs more than it saves

RequestT = TypeVar("RequestT", bound=PolicyRequest)
ReplyT = TypeVar("ReplyT", bound=PolicyReply)
Done = TypeVar("Done")


class PolicyError(RuntimeError):
    """Exception of the policy in a request that was answered alone, hence not the environment's fault.

    It holds text only, so that processes without the policy's classes can receive it.
    """

    def __init__(self, failure: Failure) -> None:
        """Take a failure, whose origin is "request" if no process could answer the request (InvalidRequestError)."""
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.kind}: {self.failure.message}"


@dataclass(slots=True, eq=False)  # equal requests are different, and arrays do not compare
class _Waiting(Generic[RequestT, ReplyT]):
    request: RequestT
    future: Future[ReplyT]
    since: float
    announce: Callable[[], None] | None  # called before it is answered, in a batch of its own
    gone: Callable[[], bool] | None = None  # returns True once nobody waits for the answer

    @property
    def isolated(self) -> bool:
        """True if it must be answered in a batch of its own."""
        return self.announce is not None


class _Queue(Generic[RequestT, ReplyT]):
    """Queue of requests of one kind, with the function that answers them."""

    def __init__(self, answer: Callable[[list[RequestT]], Sequence[ReplyT]], sizes: Sequence[int] = ()) -> None:
        """Take ascending `sizes` that are worth filling, because other batches are padded to the next of them."""
        self.answer = answer
        self.cost_s: float | None = None  # duration of the last batch
        self.waiting: deque[_Waiting[RequestT, ReplyT]] = deque()
        self._sizes = sizes
        self._costs_s: dict[int, float] = {}  # number of requests -> recent mean duration of such a batch

    def due(self, max_batch_size: int, max_wait_s: float) -> float:
        """Return the instant at which a batch may go: 0 if it is full, else the oldest request's deadline."""
        if len(self.waiting) >= max_batch_size or any(item.isolated for item in self.waiting):
            return 0.0  # no other request can join, because the batch is full or ends at an isolated one
        if not self.waiting:
            return float("inf")
        worth_s = max_wait_s if self.cost_s is None else _WORTH_WAITING * self.cost_s
        return self.waiting[0].since + min(max_wait_s, worth_s)

    def worth_taking(self, most: int) -> int:
        """Return the size of the next batch: all that may go, or fewer that fill a size if that is faster."""
        count = self._batchable(most)
        full = max((size for size in self._sizes if size <= count), default=count)
        cost_s, full_cost_s = self._costs_s.get(count), self._costs_s.get(full)
        if cost_s is None or full_cost_s is None:
            return count
        return full if full / full_cost_s > count / cost_s else count

    def note_cost(self, count: int, seconds: float) -> None:
        """Record the duration of a batch of `count` requests."""
        self.cost_s = seconds
        known = self._costs_s.get(count, seconds)
        self._costs_s[count] = known + _RECENT * (seconds - known)

    def drop_gone(self, most: int) -> bool:
        """Fail those of the oldest `most` requests that nobody waits for any more; return whether there were any."""
        before, kept = len(self.waiting), list[_Waiting[RequestT, ReplyT]]()
        while self.waiting and len(kept) < most:
            item = self.waiting.popleft()
            if item.gone is not None and item.gone():
                item.future.set_exception(ConnectionResetError("whoever asked has gone"))
            else:
                kept.append(item)
        self.waiting.extendleft(reversed(kept))
        return len(self.waiting) < before

    def take(self, most: int) -> list[_Waiting[RequestT, ReplyT]]:
        """Remove the oldest requests from the queue, up to `most` and to the first that must be isolated."""
        return [self.waiting.popleft() for _ in range(self._batchable(most))]

    def run(self, batch: list[_Waiting[RequestT, ReplyT]]) -> None:
        """Answer a batch. Halve a failed one until only the requests at fault fail.

        Halving also helps a batch that does not fit into memory.
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

    def _batchable(self, most: int) -> int:
        """Return how many at the head may share a batch of at most `most`."""
        for index, item in enumerate(self.waiting):
            if index == most:
                return most
            if item.isolated:
                return max(1, index)
        return len(self.waiting)

    def _try(self, batch: list[_Waiting[RequestT, ReplyT]]) -> PolicyError | None:
        """Answer a batch. Return its error, if there is one."""
        replies = tried(lambda: self._announced(batch))
        if isinstance(replies, PolicyError):
            return replies
        for item, reply in zip(batch, replies, strict=True):
            item.future.set_result(reply)
        return None

    def _announced(self, batch: list[_Waiting[RequestT, ReplyT]]) -> list[ReplyT]:
        if batch[0].announce is not None:
            batch[0].announce()
        return self._timed(batch)

    def _timed(self, batch: list[_Waiting[RequestT, ReplyT]]) -> list[ReplyT]:
        began = time.perf_counter()
        replies = self.answer([item.request for item in batch])
        took_s = time.perf_counter() - began
        self.note_cost(len(batch), took_s)
        return [
            dataclasses.replace(reply, timing=_measured(reply.timing, began - item.since, took_s, len(batch)))
            for reply, item in zip(replies, batch, strict=True)
        ]


def _measured(own: Timing, queue_s: float, compute_s: float, batch_size: int) -> Timing:
    """Return the policy's `own` timing with what the batch took."""
    return dataclasses.replace(own, queue_s=queue_s, compute_s=compute_s, batch_size=batch_size)


def _queue_of(policy: AnyPolicy, method: str, sizes: str) -> _Queue[Any, Any]:
    """Return the queue of what `method` answers; a request of a kind that the policy has no method for fails."""

    def answer(requests: list[Any]) -> Sequence[Any]:
        function = getattr(policy, method, None)
        if function is None:
            raise TypeError(f"a policy of kind {policy.spec.kind!r} has no method {method}")
        return checked_replies(method, function(requests), len(requests))

    return _Queue(answer, getattr(policy, sizes, ()))


def checked_replies(method: str, replies: object, count: int) -> Sequence[Any]:
    """Return the replies of a policy's `method` to `count` requests. Raise TypeError or ValueError if they are none."""
    wanted = _REPLIES[method]
    if not isinstance(replies, Sequence):
        raise TypeError(f"{method} must return a list of {wanted.__name__}, not {type(replies).__name__}")
    for reply in replies:
        if not isinstance(reply, wanted):
            raise TypeError(f"{method} must return a list of {wanted.__name__}, not of {type(reply).__name__}")
    if len(replies) != count:
        raise ValueError(f"{len(replies)} replies to {count} requests")
    return replies


def tried(work: Callable[[], Done], *but: type[BaseException]) -> Done | PolicyError:
    """Return the result of the policy's `work`, or its exception as PolicyError; let exceptions of type `but` pass."""
    try:
        with wrapping_errors(_in_words, *but, caught=BaseException):
            return work()
    except PolicyError as error:
        # It is a new error, because the cause of this one would keep its frames' tensors alive.
        return PolicyError(error.failure)


def _in_words(error: BaseException) -> PolicyError:
    trace = "".join(traceback.format_exception(error))
    origin: FailureOrigin = "request" if isinstance(error, InvalidRequestError) else "policy"
    return PolicyError(Failure(origin, type(error).__name__, str(error), trace))


class Batcher:
    """Batcher of requests of many threads to one policy."""

    def __init__(self, policy: AnyPolicy, max_batch_size: int, max_wait_s: float) -> None:
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._prepare: Callable[[Any], Any] | None = getattr(policy, "prepare", None)
        self._plans: _Queue[PlanRequest, PlanReply] = _queue_of(policy, "plan", "plan_sizes")
        self._acts: _Queue[SegmentRequest, SegmentReply] = _queue_of(policy, "act", "segment_sizes")
        self._chunks: _Queue[ChunkRequest, ChunkReply] = _queue_of(policy, "predict", "chunk_sizes")
        self._changed = threading.Condition()
        self._closed = False
        self._open: set[_Waiting[Any, Any]] = set()  # not answered, the batch in hand included
        self._preparing: dict[object, float] = {}  # start of each request's preparation, in order (monotonic)
        self._computing_since: float | None = None
        self.busy_s = 0.0  # total seconds of computing
        self.batches = 0  # number of batches computed
        self._thread = WatchedThread("policy", self._work, self._fail_all)

    @property
    def busy_since(self) -> float | None:
        """Start of the batch that computes now, or of a preparation if one began earlier (monotonic); for a watchdog.

        None if the policy's code is not at work.
        """
        with self._changed:
            starts = list(self._preparing.values())[:1]
        computing = self._computing_since
        return min(starts if computing is None else [*starts, computing], default=None)

    def check(self) -> None:
        """Raise ThreadDiedError if no request will ever be answered."""
        self._thread.check()

    def plan(
        self,
        request: PlanRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> PlanReply:
        """Answer one plan request; block until its batch is done.

        Raise PolicyError, ConnectionResetError if `gone` reports at its turn that the client has left, and
        ThreadDiedError once no request is answered any more.

        With `announce`, which is called just before, the request is a batch of its own: it may kill the process.
        """
        return self._call(self._plans, request, announce, gone)

    def act(
        self,
        request: SegmentRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> SegmentReply:
        """Answer one segment request; block until its batch is done. Arguments and errors are those of `plan`."""
        return self._call(self._acts, request, announce, gone)

    def predict(
        self,
        request: ChunkRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> ChunkReply:
        """Answer one chunk request; block until its batch is done. Arguments and errors are those of `plan`."""
        return self._call(self._chunks, request, announce, gone)

    def close(self) -> None:
        """Stop the thread after the current batch; waiting requests fail with ThreadDiedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._fail_all(ThreadDiedError("the batcher is closed"))

    def _call(
        self,
        queue: _Queue[RequestT, ReplyT],
        request: RequestT,
        announce: Callable[[], None] | None,
        gone: Callable[[], bool] | None,
    ) -> ReplyT:
        since = time.perf_counter()
        if announce is None:  # a request that may kill must not do so before it is announced
            request = self._prepared(request)
        item: _Waiting[RequestT, ReplyT] = _Waiting(request, Future(), since, announce, gone)
        with self._changed:
            if self._closed:
                raise ThreadDiedError("the policy thread has ended")
            self._open.add(item)
            queue.waiting.append(item)
            self._changed.notify_all()
        try:
            return item.future.result()
        finally:
            with self._changed:
                self._open.discard(item)

    def _prepared(self, request: RequestT) -> RequestT:
        """Return the request as prepared by the policy, if it supports that. Raise PolicyError."""
        if self._prepare is None:
            return request
        prepare, mark = self._prepare, object()
        with self._changed:
            self._preparing[mark] = time.monotonic()
        ready = tried(lambda: prepare(request))
        with self._changed:
            del self._preparing[mark]
        if isinstance(ready, PolicyError):
            _LOG.warning("the policy failed on %s: %s", request.trial.key, ready)
            raise ready
        return ready  # type: ignore[no-any-return]

    def _fail_all(self, error: ThreadDiedError) -> None:
        with self._changed:
            self._closed = True
            left, self._open = self._open, set()
        for item in left:
            if not item.future.done():
                item.future.set_exception(ThreadDiedError(*error.args))

    def _work(self) -> None:
        while (run := self._next()) is not None:
            self._computing_since = began = time.monotonic()
            run()
            self.busy_s += time.monotonic() - began
            self.batches += 1
            self._computing_since = None

    def _next(self) -> Callable[[], None] | None:
        """Wait until a batch may go. Return None when closed."""
        with self._changed:
            while not self._closed:
                queues: tuple[_Queue[Any, Any], ...] = (self._plans, self._acts, self._chunks)
                due = [queue.due(self._size, self._wait_s) for queue in queues]
                now = time.perf_counter()
                if min(due) > now:
                    pause = min(due) - now
                    self._changed.wait(pause if pause < 3600 else None)
                    continue
                run = self._take(self._first(*(instant <= now for instant in due)))
                if run is not None:
                    return run
        return None

    def _first(self, plan_may: bool, act_may: bool, chunk_may: bool) -> _Queue[Any, Any]:
        """Return the queue whose batch goes, of those that may. Chunks wait for nothing: their policy has no plans."""
        if chunk_may:
            return self._chunks
        return self._plans if self._plan_goes(plan_may, act_may) else self._acts

    def _plan_goes(self, plan_may: bool, act_may: bool) -> bool:
        """Return True if plans go before segments: the longer wait decides, but segments overtake gathering plans.

        Both waits grow at the same rate, so neither kind starves. An isolated plan does not gather others.
        """
        if plan_may and act_may:
            first = self._plans.waiting[0]
            gather_s = _GATHER * (self._plans.cost_s or 0.0) if not first.isolated else 0.0
            return first.since + gather_s < self._acts.waiting[0].since
        return plan_may

    def _take(self, queue: _Queue[RequestT, ReplyT]) -> Callable[[], None] | None:
        """Return the function that answers the next batch; None if clients have left, because another may be due."""
        if queue.drop_gone(self._size):
            return None
        return partial(queue.run, queue.take(queue.worth_taking(self._size)))
