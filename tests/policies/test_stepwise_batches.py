"""What is computed next where plans are decoded in steps: who shares a step, who waits, and what an error costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.policies.test_batching import LONG_S, act_request, plan_request
from wpray.policies.base import PolicySpec
from wpray.policies.batching import Batcher
from wpray.policies.request_queue import PolicyError, WaitingRequest, queue_of
from wpray.policies.stepwise_batches import StepwiseBatches
from wpray.types import (
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Timing,
    WaypointPlan,
)

STEPS = 3


class Steps:
    """StepwisePlans of numbers, each of which takes three steps; it notes what is computed."""

    slots = 4

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.done: list[tuple[str, list[int]]] = []
        self.poison = frozenset(poison)
        self.now = 0.0
        self.seconds = {"start": 0.0, "step": 0.0, "answer": 0.0}  # that a call takes
        self._left: dict[int, int] = {}
        self._handles: dict[int, list[int]] = {}

    def start(self, requests: Sequence[PlanRequest]) -> list[list[int]]:
        numbers = [request.trial.init_state for request in requests]
        self._note("start", numbers)
        for number in numbers:
            self._left[number], self._handles[number] = STEPS, [number]
        return [self._handles[number] for number in numbers]

    def advance(self) -> list[list[int]]:
        self._note("step", sorted(self._left))
        if self.poison & set(self._left):
            raise FloatingPointError("a plan that cannot be decoded")
        self._left = {number: left - 1 for number, left in self._left.items()}
        ready = [number for number, left in self._left.items() if not left]
        self._left = {number: left for number, left in self._left.items() if left}
        return [self._handles.pop(number) for number in ready]

    def answer(
        self, plans: Sequence[list[int]], segments: Sequence[SegmentRequest]
    ) -> Callable[[], tuple[list[PlanReply], list[SegmentReply]]]:
        numbers = [number for plan in plans for number in plan]
        self._note("answer", [*numbers, *(request.trial.init_state for request in segments)])
        planner_s = self.seconds["start"] + STEPS * self.seconds["step"]
        timing = Timing(planner_s=planner_s, expert_s=self.seconds["answer"])
        replies = [replace(_reply(number), timing=timing) for number in numbers]
        return lambda: (replies, [_segment(request) for request in segments])

    def clear(self) -> None:
        self.done.append(("clear", []))
        self._left = {}

    def _note(self, kind: str, numbers: list[int]) -> None:
        self.done.append((kind, numbers))
        self.now += self.seconds[kind]


class StepPolicy:
    """Policy that decodes in steps; batches of its own methods are noted, too."""

    spec = PolicySpec("steps", images=False, privileged=False, num_gpus=0, max_batch_size=64)

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.stepwise = Steps(poison)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        numbers = [request.trial.init_state for request in requests]
        self.stepwise.done.append(("plan", numbers))
        if self.stepwise.poison & set(numbers):
            raise FloatingPointError("a plan that cannot be decoded")
        return [_reply(number) for number in numbers]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        self.stepwise.done.append(("act", [request.trial.init_state for request in requests]))
        return [_segment(request) for request in requests]


def _reply(number: int) -> PlanReply:
    return PlanReply(
        WaypointPlan(np.full(8, number, np.float32), np.zeros((1, 8), np.float32), np.zeros(1, np.int64)), None
    )


def _segment(request: SegmentRequest) -> SegmentReply:
    return SegmentReply(Segment(np.full((1, 7), float(request.trial.init_state))))


class Turns:
    """Batches without a thread, on a clock of its own."""

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.policy = StepPolicy(poison)
        self.plans, self.segments = queue_of(self.policy, "plan", ""), queue_of(self.policy, "act", "")
        self.steps = self.policy.stepwise
        self.batches = StepwiseBatches(self.steps, self.plans, self.segments, 64, 0.0, lambda: self.steps.now)

    @property
    def done(self) -> list[tuple[str, list[int]]]:
        return self.policy.stepwise.done

    def plan(self, number: int, alone: bool = False) -> Future[PlanReply]:
        return self._ask(self.plans, plan_request(number), alone)

    def act(self, number: int) -> Future[SegmentReply]:
        return self._ask(self.segments, act_request(number), False)

    def run(self, count: int | None = None) -> None:
        """Compute `count` times, or until there is nothing to do."""
        while count is None or count > 0:
            run, _ = self.batches.next(self.steps.now)
            if run is None:
                assert count is None, "there is nothing to compute"
                return
            run()
            count = None if count is None else count - 1

    def _ask(self, queue, request, alone: bool):  # type: ignore[no-untyped-def]
        item = WaitingRequest(
            request, Future(), self.steps.now, (lambda: self.done.append(("alone", []))) if alone else None
        )
        queue.waiting.append(item)
        return item.future


def test_a_plan_starts_while_others_are_under_way_and_leaves_when_it_is_decoded() -> None:
    turns = Turns()
    first = turns.plan(1)
    turns.run(2)
    others = [turns.plan(2), turns.plan(3)]
    turns.run()
    assert [int(future.result(0).plan.start[0]) for future in (first, *others)] == [1, 2, 3]
    assert turns.done == [
        ("start", [1]),
        ("step", [1]),
        ("start", [2, 3]),
        ("step", [1, 2, 3]),
        ("step", [1, 2, 3]),
        ("answer", [1]),
        ("step", [2, 3]),
        ("answer", [2, 3]),
    ]


def test_segments_are_answered_between_steps_once_they_are_enough_or_have_waited() -> None:
    turns = Turns()
    turns.steps.seconds |= {"step": 0.4, "answer": 1.0}
    turns.act(0)
    turns.run()  # so that it is known what an answer takes
    plan = turns.plan(1)
    turns.run(2)
    few = [turns.act(number) for number in range(2, 4)]
    turns.run(1)
    assert turns.done[-1] == ("step", [1])
    many = [turns.act(number) for number in range(4, 8)]
    turns.run(1)
    assert turns.done[-1] == ("answer", [2, 3, 4, 5, 6, 7])
    assert not many[0].done(), "the GPU gets other work first"
    turns.run(1)
    assert turns.done[-1] == ("step", [1])
    assert all(future.done() for future in (*few, *many)) and not plan.done()
    others = turns.plan(8), turns.plan(9)
    late = turns.act(10)
    turns.run()
    assert turns.done[-5:] == [("start", [8, 9]), *[("step", [8, 9])] * 3, ("answer", [1, 8, 9, 10])]
    assert all(future.done() for future in (plan, late, *others))


def test_what_a_policy_computes_for_others_counts_as_waiting() -> None:
    turns = Turns()
    turns.steps.seconds |= {"start": 0.5, "step": 0.25, "answer": 1.0}
    plan = turns.plan(1)
    turns.run(2)
    for number in range(6):
        turns.act(number)
    turns.run()
    timing = plan.result(0).timing
    assert timing.compute_s == pytest.approx(0.5 + STEPS * 0.25 + 1.0)
    assert timing.queue_s == pytest.approx(1.0)


def test_full_batches_of_segments_do_not_starve_plans() -> None:
    turns = Turns()
    turns.steps.seconds["answer"] = 1.0
    plan = turns.plan(1)
    turns.run(1)
    for number in range(0, 200, 8):
        for more in range(8):
            turns.act(100 + number + more)
        turns.run(1)
    kinds = [kind for kind, _ in turns.done]
    assert plan.done()
    assert kinds[: 1 + 5 * STEPS] == ["start", *[*["answer"] * 4, "step"] * STEPS]


def test_no_more_plans_are_under_way_than_there_are_slots() -> None:
    turns = Turns()
    futures = [turns.plan(number) for number in range(6)]
    turns.run()
    assert max(len(numbers) for kind, numbers in turns.done if kind == "step") == Steps.slots
    assert all(future.done() for future in futures)


def test_a_request_that_must_be_isolated_waits_until_nothing_is_under_way() -> None:
    turns = Turns()
    turns.plan(1)
    turns.run(1)
    turns.plan(2, alone=True)
    turns.plan(3)
    turns.run()
    assert [entry for entry in turns.done if entry[0] != "step"] == [
        ("start", [1]),
        ("answer", [1]),
        ("alone", []),
        ("plan", [2]),
        ("start", [3]),
        ("answer", [3]),
    ]


def test_an_error_blames_the_plan_at_fault_and_answers_all_others() -> None:
    turns = Turns(poison=[2])
    futures = {number: turns.plan(number) for number in (1, 2, 3)}
    turns.run()
    assert isinstance(futures.pop(2).exception(0), PolicyError)
    assert {number: int(future.result(0).plan.start[0]) for number, future in futures.items()} == {1: 1, 3: 3}
    assert ("clear", []) in turns.done


@pytest.mark.parametrize("count", [1, 5, 40])
def test_many_threads_get_their_own_answers(count: int) -> None:
    policy = StepPolicy()
    batcher = Batcher(policy, 64, 0.001)
    barrier = threading.Barrier(count)

    def converse(number: int) -> list[int]:
        barrier.wait(LONG_S)
        plan = batcher.plan(plan_request(number))
        segment = batcher.act(act_request(number + 1000))
        assert plan.timing.batch_size >= 1 and plan.timing.compute_s >= 0 <= segment.timing.queue_s
        return [int(plan.plan.start[0]), int(segment.segment.actions[0, 0])]

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(converse, range(count)))
    batcher.close()
    assert found == [[number, number + 1000] for number in range(count)]
    assert {kind for kind, _ in policy.stepwise.done} == {"start", "step", "answer"}
