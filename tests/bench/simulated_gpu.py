"""Policy replica under a simulated clock, with the batching rule of real runs and measured durations of calls."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from wpray.policies.batching import Batcher
from wpray.policies.request_queue import RequestQueue, WaitingRequest

RequestKind = Literal["plan", "segment"]

# Measured milliseconds per call by batch size, on one H100 in bfloat16, and an env actor's milliseconds on one core.
# A plan's call also computes its first segment.
SEGMENT_MS = {1: 17.0, 2: 21.2, 4: 29.4, 8: 50.1, 16: 93.8, 32: 184.5}
_WAYPOINTS_MS = {1: 124.4, 2: 130.1, 4: 138.7, 8: 159.2, 16: 204.3, 32: 291.4}
PLAN_MS = {size: ms + SEGMENT_MS[size] for size, ms in _WAYPOINTS_MS.items()}


@dataclass(frozen=True, slots=True)
class Costs:
    """Durations, seconds."""

    plan_s: Mapping[int, float] = field(default_factory=lambda: _seconds(PLAN_MS))  # per call, by batch size
    segment_s: Mapping[int, float] = field(default_factory=lambda: _seconds(SEGMENT_MS))
    step_s: float = 0.0055
    look_s: float = 0.005  # renders of one decision
    reset_s: float = 0.05
    compile_s: float = 5.0  # for a task that is new to an env actor
    driver_s: float = 0.001  # per episode: the driver's thread, including file syncs


class Asker(Protocol):
    """Receiver of a reply."""

    def go_on(self) -> None:
        """Receive the reply."""


class Clock(Protocol):
    """Clock and agenda of a simulation."""

    now: float

    def at(self, instant: float, act: Callable[[Any], None], argument: Any = None) -> None:
        """Call `act(argument)` at `instant`."""


class SimulatedBatcher(Batcher):
    """Queues of a policy actor and its rule for the next batch, without its thread and its clock."""

    def __init__(self, max_batch_size: int, max_wait_s: float, sizes: Sequence[int] = ()) -> None:
        """`sizes` are those to which batches are padded, ascending."""
        self._size, self._wait_s = max_batch_size, max_wait_s
        self._plans, self._acts = RequestQueue(_no_answer, sizes), RequestQueue(_no_answer, sizes)

    def ask(self, kind: RequestKind, actor: Asker, now: float, *, isolated: bool = False) -> None:
        """Queue a request; `isolated`: it was asked before of a replica that died."""
        queue: RequestQueue[Any, Any] = self._plans if kind == "plan" else self._acts
        queue.waiting.append(WaitingRequest(actor, None, now, _announce if isolated else None))  # type: ignore[arg-type]

    def due(self, now: float) -> float:
        """Return the time from which a batch may go; infinity if nothing waits."""
        return max(now, min(queue.due(self._size, self._wait_s) for queue in (self._plans, self._acts)))

    def take_batch(self, now: float) -> tuple[RequestKind, list[Asker]]:
        """Return the batch that goes at `now`, which must be due."""
        plan_may, act_may = (queue.due(self._size, self._wait_s) <= now for queue in (self._plans, self._acts))
        kind: RequestKind = "plan" if self._plan_goes(plan_may, act_may) else "segment"
        queue: RequestQueue[Any, Any] = self._plans if kind == "plan" else self._acts
        return kind, [item.request for item in queue.take(queue.worth_taking(self._size))]

    def note_cost(self, kind: RequestKind, count: int, seconds: float) -> None:
        """Record the duration of a batch of `count` requests."""
        queue: RequestQueue[Any, Any] = self._plans if kind == "plan" else self._acts
        queue.note_cost(count, seconds)


class SimulatedGpu:
    """Policy replica that computes one batch at a time."""

    def __init__(self, clock: Clock, costs: Costs, max_batch_size: int, max_wait_s: float) -> None:
        self._clock = clock
        self._batcher = SimulatedBatcher(max_batch_size, max_wait_s)
        self._computing = False
        self._look_at = float("inf")  # earliest check on the agenda
        self._cost_s: dict[RequestKind, list[float]] = {
            "plan": [interpolated(costs.plan_s, size) for size in range(max_batch_size + 1)],
            "segment": [interpolated(costs.segment_s, size) for size in range(max_batch_size + 1)],
        }
        self.busy = Busy()
        self.batches = self.requests = 0

    def ask(self, kind: RequestKind, actor: Asker) -> None:
        """Queue a request; `actor.go_on` is called once its batch is done."""
        self._batcher.ask(kind, actor, self._clock.now)
        self._look()

    def _look(self, _: None = None) -> None:
        """Start a batch if one may go; otherwise check again when one may."""
        now = self._clock.now
        if self._look_at <= now:
            self._look_at = float("inf")
        if self._computing:
            return
        due = self._batcher.due(now)
        if due > now:
            if due < self._look_at:
                self._look_at = due
                self._clock.at(due, self._look)
            return
        kind, batch = self._batcher.take_batch(now)
        seconds = self._cost_s[kind][len(batch)]
        self._computing = True
        self.batches, self.requests = self.batches + 1, self.requests + len(batch)
        self.busy.add(now, now + seconds)
        self._clock.at(now + seconds, self._done, (kind, batch, seconds))

    def _done(self, done: tuple[RequestKind, list[Asker], float]) -> None:
        kind, batch, seconds = done
        self._batcher.note_cost(kind, len(batch), seconds)
        self._computing = False
        for actor in batch:
            actor.go_on()
        self._look()


class Busy:
    """Intervals of work, in order of their starts."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []

    def add(self, start: float, end: float) -> None:
        """Add an interval that starts after all others."""
        self._starts.append(start)
        self._ends.append(end)

    def within(self, start: float, end: float) -> float:
        """Return the seconds of work between two times."""
        first, last = bisect.bisect_right(self._ends, start), bisect.bisect_left(self._starts, end)
        pairs = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return sum(min(b, end) - max(a, start) for a, b in pairs)


def interpolated(by_batch: Mapping[int, float], size: int) -> float:
    """Return the duration of a call with `size` requests, s, interpolated between the measured sizes."""
    sizes = sorted(by_batch)
    above = min(bisect.bisect_left(sizes, size), len(sizes) - 1)
    below = max(0, above - 1)
    if above == below or size <= sizes[0]:
        return by_batch[sizes[above]]
    share = (size - sizes[below]) / (sizes[above] - sizes[below])
    return by_batch[sizes[below]] + share * (by_batch[sizes[above]] - by_batch[sizes[below]])


def _seconds(by_batch: Mapping[int, float]) -> dict[int, float]:
    return {batch: ms / 1000 for batch, ms in by_batch.items()}


def _announce() -> None: ...


def _no_answer(_: list[Any]) -> list[Any]:
    raise AssertionError("a simulated policy computes nothing")
