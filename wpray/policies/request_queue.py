"""Requests of one kind that wait for a policy, and how a batch of them is answered.

A batch that fails is halved until only the requests at fault fail. A request that must be isolated, because it may kill
the process, is a batch of its own. A request whose client has gone is dropped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wpray.errors import InvalidRequestError, wrapping_errors
from wpray.policies.base import AnyPolicy
from wpray.types import (
    ChunkReply,
    Failure,
    FailureOrigin,
    PlanReply,
    PolicyReply,
    PolicyRequest,
    SegmentReply,
    Timing,
)

_LOG = logging.getLogger(__name__)
_REPLIES = {"plan": PlanReply, "act": SegmentReply, "predict": ChunkReply}  # by the policy's method
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
class WaitingRequest(Generic[RequestT, ReplyT]):
    """Request that waits for its answer."""

    request: RequestT
    future: Future[ReplyT]
    since: float
    announce: Callable[[], None] | None  # called before it is answered, in a batch of its own
    gone: Callable[[], bool] | None = None  # returns True once nobody waits for the answer

    @property
    def isolated(self) -> bool:
        """True if it must be answered in a batch of its own."""
        return self.announce is not None


class RequestQueue(Generic[RequestT, ReplyT]):
    """Queue of requests of one kind, with the function that answers them."""

    def __init__(self, answer: Callable[[list[RequestT]], Sequence[ReplyT]], sizes: Sequence[int] = ()) -> None:
        """Take ascending `sizes` that are worth filling, because other batches are padded to the next of them."""
        self.answer = answer
        self.cost_s: float | None = None  # duration of the last batch
        self.waiting: deque[WaitingRequest[RequestT, ReplyT]] = deque()
        self._sizes = sizes
        self._costs_s: dict[int, float] = {}  # number of requests -> recent mean duration of such a batch

    @property
    def starts_isolated(self) -> bool:
        """True if the next batch is a request that must be isolated."""
        return bool(self.waiting) and self.waiting[0].isolated

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
        count = self.batchable(most)
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
        before, kept = len(self.waiting), list[WaitingRequest[RequestT, ReplyT]]()
        while self.waiting and len(kept) < most:
            item = self.waiting.popleft()
            if item.gone is not None and item.gone():
                item.future.set_exception(ConnectionResetError("whoever asked has gone"))
            else:
                kept.append(item)
        self.waiting.extendleft(reversed(kept))
        return len(self.waiting) < before

    def take(self, most: int) -> list[WaitingRequest[RequestT, ReplyT]]:
        """Remove the oldest requests from the queue, up to `most` and to the first that must be isolated."""
        return [self.waiting.popleft() for _ in range(self.batchable(most))]

    def run(self, batch: list[WaitingRequest[RequestT, ReplyT]]) -> None:
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

    def batchable(self, most: int) -> int:
        """Return how many at the head may share a batch of at most `most`."""
        for index, item in enumerate(self.waiting):
            if index == most:
                return most
            if item.isolated:
                return max(1, index)
        return len(self.waiting)

    def _try(self, batch: list[WaitingRequest[RequestT, ReplyT]]) -> PolicyError | None:
        """Answer a batch. Return its error, if there is one."""
        replies = tried(lambda: self._announced(batch))
        if isinstance(replies, PolicyError):
            return replies
        for item, reply in zip(batch, replies, strict=True):
            item.future.set_result(reply)
        return None

    def _announced(self, batch: list[WaitingRequest[RequestT, ReplyT]]) -> list[ReplyT]:
        if batch[0].announce is not None:
            batch[0].announce()
        return self._timed(batch)

    def _timed(self, batch: list[WaitingRequest[RequestT, ReplyT]]) -> list[ReplyT]:
        began = time.perf_counter()
        replies = self.answer([item.request for item in batch])
        took_s = time.perf_counter() - began
        self.note_cost(len(batch), took_s)
        return [
            dataclasses.replace(reply, timing=measured(reply.timing, began - item.since, took_s, len(batch)))
            for reply, item in zip(replies, batch, strict=True)
        ]


def measured(own: Timing, queue_s: float, compute_s: float, batch_size: int) -> Timing:
    """Return the policy's `own` timing with what the batch took."""
    return dataclasses.replace(own, queue_s=queue_s, compute_s=compute_s, batch_size=batch_size)


def queue_of(policy: AnyPolicy, method: str, sizes: str) -> RequestQueue[Any, Any]:
    """Return the queue of what `method` answers; a request of a kind that the policy has no method for fails."""

    def answer(requests: list[Any]) -> Sequence[Any]:
        function = getattr(policy, method, None)
        if function is None:
            raise TypeError(f"a policy of kind {policy.spec.kind!r} has no method {method}")
        return checked_replies(method, function(requests), len(requests))

    return RequestQueue(answer, getattr(policy, sizes, ()))


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
