"""Dynamic batching of requests of many episodes to one policy.

There is a queue for each kind of request (plans and segments, or chunks), and one thread that computes. While a batch
computes, requests collect, and the thread of each request prepares it (tokens, noise, images in page-locked memory) if
the policy supports that. A batch goes when it is full or its oldest request has waited long enough. If two may go,
segments overtake plans for a while; then the one that has waited longer goes, so neither kind starves. Where a policy
decodes plans in steps, requests join between two of them (stepwise_batches.py).

Requests of one kind are answered in order of arrival. A request that must be isolated, because it may kill the process,
is a batch of its own. A request whose client has gone is dropped. If the thread ends, all requests fail, also later
ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from wpray.errors import ThreadDiedError
from wpray.policies.base import AnyPolicy
from wpray.policies.request_queue import (
    PolicyError,
    ReplyT,
    RequestQueue,
    RequestT,
    WaitingRequest,
    queue_of,
    tried,
)
from wpray.policies.stepwise_batches import StepwiseBatches
from wpray.system.threads import WatchedThread
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    PlanReply,
    PlanRequest,
    SegmentReply,
    SegmentRequest,
)

_LOG = logging.getLogger(__name__)

# A plan streams the VLM's weights once for each token, for one request or for many, and costs as much as several
# batches of segments. Gathering plans for three times as long gave a sixth more episodes with 40 environments.
_GATHER = 3.0


class Batcher:
    """Batcher of requests of many threads to one policy."""

    def __init__(self, policy: AnyPolicy, max_batch_size: int, max_wait_s: float) -> None:
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._prepare: Callable[[Any], Any] | None = getattr(policy, "prepare", None)
        self._plans: RequestQueue[PlanRequest, PlanReply] = queue_of(policy, "plan", "plan_sizes")
        self._acts: RequestQueue[SegmentRequest, SegmentReply] = queue_of(policy, "act", "segment_sizes")
        self._chunks: RequestQueue[ChunkRequest, ChunkReply] = queue_of(policy, "predict", "chunk_sizes")
        plans = getattr(policy, "stepwise", None)
        batches = (self._plans, self._acts, max_batch_size, max_wait_s)
        self._stepwise = None if plans is None else StepwiseBatches(plans, *batches)
        self._changed = threading.Condition()
        self._closed = False
        self._open: set[WaitingRequest[Any, Any]] = set()  # not answered, the batch in hand included
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
        queue: RequestQueue[RequestT, ReplyT],
        request: RequestT,
        announce: Callable[[], None] | None,
        gone: Callable[[], bool] | None,
    ) -> ReplyT:
        since = time.perf_counter()
        if announce is None:  # a request that may kill must not do so before it is announced
            request = self._prepared(request)
        item: WaitingRequest[RequestT, ReplyT] = WaitingRequest(request, Future(), since, announce, gone)
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
                now = time.perf_counter()
                run, due = self._now(now) if self._stepwise is None else self._stepwise.next(now)
                if run is not None:
                    return run
                if due > now:
                    pause = due - now
                    self._changed.wait(pause if pause < 3600 else None)
        return None

    def _now(self, now: float) -> tuple[Callable[[], None] | None, float]:
        """Return the function that answers a batch, or None and the instant at which one may go."""
        queues: tuple[RequestQueue[Any, Any], ...] = (self._plans, self._acts, self._chunks)
        due = [queue.due(self._size, self._wait_s) for queue in queues]
        if min(due) > now:
            return None, min(due)
        return self._take(self._first(*(instant <= now for instant in due))), now

    def _first(self, plan_may: bool, act_may: bool, chunk_may: bool) -> RequestQueue[Any, Any]:
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

    def _take(self, queue: RequestQueue[RequestT, ReplyT]) -> Callable[[], None] | None:
        """Return the function that answers the next batch; None if clients have left, because another may be due."""
        if queue.drop_gone(self._size):
            return None
        return partial(queue.run, queue.take(queue.worth_taking(self._size)))
