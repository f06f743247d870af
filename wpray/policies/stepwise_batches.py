"""Batches for a policy whose plans are decoded in steps (continuous batching).

Segments that wait are answered as soon as there are enough of them, together with the first segments of plans that are
decoded. Otherwise plans that wait are started, and then all plans under way are taken a step further. So a plan shares
its steps with those that came before and after it, and no segment waits for a whole plan. Answers are handed out once
the GPU has its next work.

Simulated with the measured costs of an H200, this brings 8 to 15% more episodes than taking turns, with 8 to 44
environments: a step costs about as much for 30 plans as for one.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from wpray.policies.base import StepwisePlans
from wpray.policies.request_queue import PolicyError, RequestQueue, WaitingRequest, checked_replies, measured, tried
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest, Timing

_LOG = logging.getLogger(__name__)
_ENOUGH_SEGMENTS = 6  # a batch of more costs hardly less a segment
_ENOUGH_PLANS = 2  # requests that start while others are under way
_STEPS = 2.0  # a plan that waited for so many steps starts without company
_SEGMENT_BATCHES = 3.0  # plans under way wait for no more than so many batches of segments in a row

_Run = Callable[[], None]


@dataclass(slots=True)
class _Plan:
    """Plan that has started."""

    waiting: WaitingRequest[PlanRequest, PlanReply]
    handle: Any
    began: float
    batch_size: int  # plans under way when it started, itself included
    decoded: float = 0.0  # when it was ready to be answered


@dataclass(frozen=True, slots=True)
class _Begun:
    """Answers that are being computed."""

    plans: Sequence[_Plan]
    items: Sequence[WaitingRequest[SegmentRequest, SegmentReply]]
    since: float
    wait: Callable[[], tuple[list[PlanReply], list[SegmentReply]]]

    def replies(self) -> tuple[Sequence[PlanReply], Sequence[SegmentReply]]:
        """Wait for the replies. Raise what the policy raises, TypeError or ValueError if they are none."""
        found = self.wait()
        return checked_replies("plan", found[0], len(self.plans)), checked_replies("act", found[1], len(self.items))


class StepwiseBatches:
    """Choice of what a policy computes next, for the thread of one batcher."""

    def __init__(
        self,
        plans: StepwisePlans,
        plan_queue: RequestQueue[PlanRequest, PlanReply],
        segment_queue: RequestQueue[SegmentRequest, SegmentReply],
        max_batch_size: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._plans, self._plan_queue, self._segment_queue = plans, plan_queue, segment_queue
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._under_way: dict[int, _Plan] = {}  # by identity of the handle
        self._decoded: list[_Plan] = []  # without an answer
        self._begun: _Begun | None = None
        self._finished = 0.0  # when the last answers were computed
        self._step_s = self._segments_s = 0.0  # of the last step, and of the last batch of segments
        self._plan_turn = 0.0  # when plans were computed last

    def next(self, now: float) -> tuple[_Run | None, float]:
        """Return what to compute, or None and the instant (perf_counter) at which that may change.

        The caller holds the lock of the queues.
        """
        queues: tuple[RequestQueue[Any, Any], ...] = (self._plan_queue, self._segment_queue)
        alone = next((queue for queue in queues if queue.starts_isolated), None)
        if alone is not None and not self._under_way and not self._decoded and self._begun is None:
            return partial(alone.run, alone.take(1)), now
        if any(queue.drop_gone(self._size) for queue in queues):
            return None, now
        accepts = alone is None  # a request that must be alone waits until nothing else is under way
        if self._segments_go(now, accepts):
            return self._take_segments(accepts), now
        if self._plans_start(now, accepts):
            return partial(self._start, self._plan_queue.take(self._room)), now
        if self._under_way:
            return self._advance, now
        if self._begun is not None:
            return self._finish, now
        return None, min(queue.due(self._size, self._wait_s) for queue in queues)

    @property
    def _room(self) -> int:
        return min(self._size, self._plans.slots) - len(self._under_way)

    def _segments_go(self, now: float, accepts: bool) -> bool:
        asked = self._segment_queue.batchable(self._size) if accepts else 0
        if not asked and not self._decoded:
            return False
        if not self._under_way and not self._plans_start(now, accepts):
            return bool(self._decoded) or self._segment_queue.due(self._size, self._wait_s) <= now
        if not self._decoded and self._plans_starve(now):
            return False
        oldest = min(
            self._segment_queue.waiting[0].since if asked else now,
            self._decoded[0].decoded if self._decoded else now,
        )
        return asked + len(self._decoded) >= _ENOUGH_SEGMENTS or now - oldest >= self._segments_s

    def _plans_starve(self, now: float) -> bool:
        """Return True if plans have waited for several batches of segments."""
        since = self._plan_turn if self._under_way else self._plan_queue.waiting[0].since
        return bool(self._segments_s) and now - since > _SEGMENT_BATCHES * self._segments_s

    def _plans_start(self, now: float, accepts: bool) -> bool:
        queue = self._plan_queue
        waiting = queue.batchable(self._room) if accepts else 0
        if not waiting:
            return False
        if not self._under_way:
            return queue.due(self._size, self._wait_s) <= now
        return waiting >= _ENOUGH_PLANS or now - queue.waiting[0].since >= _STEPS * self._step_s

    def _take_segments(self, accepts: bool) -> _Run:
        decoded, self._decoded = self._decoded[: self._size], self._decoded[self._size :]
        return partial(self._answer, decoded, self._segment_queue.take(self._size - len(decoded)) if accepts else [])

    def _start(self, items: Sequence[WaitingRequest[PlanRequest, PlanReply]]) -> None:
        began = self._clock()
        handles = tried(lambda: self._plans.start([item.request for item in items]))
        if isinstance(handles, PolicyError):
            self._recover(handles, items, [])
            return
        together = len(self._under_way) + len(items)
        for item, handle in zip(items, handles, strict=True):
            self._under_way[id(handle)] = _Plan(item, handle, began, together)
        self._plan_turn = self._clock()
        self._finish()

    def _advance(self) -> None:
        began = self._clock()
        ready = tried(self._plans.advance)
        if isinstance(ready, PolicyError):
            self._recover(ready, [], [])
            return
        self._plan_turn = self._clock()
        self._step_s = self._plan_turn - began
        for handle in ready:
            plan = self._under_way.pop(id(handle))
            plan.decoded = self._plan_turn
            self._decoded.append(plan)
        self._finish()

    def _answer(self, plans: Sequence[_Plan], items: Sequence[WaitingRequest[SegmentRequest, SegmentReply]]) -> None:
        began = self._clock()
        requests = [item.request for item in items]
        wait = tried(lambda: self._plans.answer([plan.handle for plan in plans], requests))
        if isinstance(wait, PolicyError):
            self._recover(wait, [plan.waiting for plan in plans], items)
            return
        self._finish()
        self._begun = _Begun(plans, items, began, wait)

    def _finish(self) -> None:
        """Hand out the answers that have been begun, once they are computed."""
        if (begun := self._begun) is None:
            return
        self._begun = None
        replies = tried(begun.replies)
        if isinstance(replies, PolicyError):
            self._recover(replies, [plan.waiting for plan in begun.plans], begun.items)
            return
        ended, count = self._clock(), len(begun.plans) + len(begun.items)
        self._segments_s, self._finished = ended - max(begun.since, self._finished), ended
        for plan, first in zip(begun.plans, replies[0], strict=True):
            timing = _shared(first.timing, ended - plan.waiting.since, ended - plan.began, plan.batch_size)
            plan.waiting.future.set_result(dataclasses.replace(first, timing=timing))
        for item, reply in zip(begun.items, replies[1], strict=True):
            timing = _shared(reply.timing, ended - item.since, ended - begun.since, count)
            item.future.set_result(dataclasses.replace(reply, timing=timing))

    def _recover(
        self,
        error: PolicyError,
        plans: Sequence[WaitingRequest[PlanRequest, PlanReply]],
        segments: Sequence[WaitingRequest[SegmentRequest, SegmentReply]],
    ) -> None:
        """Answer all that was under way in batches of their own, which find the request at fault."""
        _LOG.warning("plans under way are computed again because of one of them or of the memory: %s", error)
        self._finish()
        again = [plan.waiting for plan in (*self._under_way.values(), *self._decoded)] + list(plans)
        self._under_way, self._decoded = {}, []
        tried(self._plans.clear)
        if again:
            self._plan_queue.run(again)
        if segments:
            self._segment_queue.run(list(segments))


def _shared(own: Timing, total_s: float, since_start_s: float, batch_size: int) -> Timing:
    """Return the policy's `own` timing of an answer that shared the device with others; they count as its queue."""
    computed_s = (own.planner_s or 0.0) + (own.expert_s or 0.0)
    compute_s = min(computed_s or since_start_s, since_start_s)
    return measured(own, total_s - compute_s, compute_s, batch_size)
