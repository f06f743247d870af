"""Plans that are decoded together although they did not start together, each in a slot of the planner's.

A plan may start while others are at any waypoint, and each leaves after its last. What a row computes depends on its
slot alone, so a plan has the bits that it has in a batch of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wpray.models.batch_parts import BatchShape
from wpray.models.plan_slots import PlanSlots
from wpray.models.spans import Span
from wpray.models.staging import fetch_later, rows_of
from wpray.models.vlm import WaypointVLM
from wpray.policies.batch_shapes import BatchShapes
from wpray.policies.waypoint_vla.preparation import ReadyPlan
from wpray.types import IntArray


@dataclass(slots=True)
class PlanUnderWay:
    """Plan that has started."""

    request: ReadyPlan
    seen: Tensor  # images (2, 224, 224, 3) on the device, or their features if the action expert shares the backbone
    decoded: int = 0  # waypoints
    values: Callable[[], IntArray] | None = None  # once all are decoded: waits for them, (M, V)
    spans: list[Span] = field(default_factory=list)  # of reading its prompt and of its waypoints

    @property
    def planner_s(self) -> float:
        """Seconds that the device computed for it and for those that shared its batches."""
        return sum(span.seconds() for span in self.spans)


@dataclass(slots=True)
class _Group:
    """Plans whose prompts are padded to one length."""

    plans: PlanSlots | None = None
    by_row: dict[int, PlanUnderWay] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of slots up to the last one that is taken."""
        return max(self.by_row) + 1

    def free(self) -> Iterator[int]:
        """Yield free slots, the first ones first, because a step computes all slots up to the last one taken."""
        return (row for row in itertools.count() if row not in self.by_row)


class PlansUnderWay:
    """Plans of one planner that have started, for one caller at a time."""

    def __init__(self, vlm: WaypointVLM, shapes: BatchShapes, num_waypoints: int, shares_features: bool) -> None:
        """`shapes` are the planner's; `shares_features`: plans keep the features of their images."""
        self._vlm, self._shapes, self._num_waypoints = vlm, shapes, num_waypoints
        self._shares = shares_features
        self._groups: dict[int, _Group] = {}  # by padded prompt length
        self._step_done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        """Return the number of plans under way."""
        return sum(len(group.by_row) for group in self._groups.values())

    def start(self, images: Tensor, requests: Sequence[ReadyPlan]) -> list[PlanUnderWay]:
        """Read the requests' prompts and images (B, 2, 224, 224, 3); return their plans, which are now under way."""
        started: list[PlanUnderWay | None] = [None] * len(requests)
        sizes = [self._vlm.prompt_size(len(request.prompt)) for request in requests]
        for size in sorted(set(sizes)):
            numbers = [number for number, own in enumerate(sizes) if own == size]
            plans = self._start(size, rows_of(images, numbers), [requests[number] for number in numbers])
            for number, plan in zip(numbers, plans, strict=True):
                started[number] = plan
        return [plan for plan in started if plan is not None]

    def advance(self) -> list[PlanUnderWay]:
        """Decode a waypoint of every plan, and return those that have all of theirs.

        The GPU computes it later: this waits only for the step before, so that the GPU always has work.
        """
        finished: list[PlanUnderWay] = []
        for size, group in self._groups.items():
            if group.by_row:
                finished += self._advance(size, group)
        if self._step_done is not None:
            self._step_done.synchronize()
        if self._vlm.device.type == "cuda":
            self._step_done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._step_done.record()
        return finished

    def clear(self) -> None:
        """Forget every plan, for example after an error."""
        self._groups.clear()
        self._step_done = None

    def slots(self, prompt_size: int) -> int:
        """Return how many plans with prompts of a padded length may be under way; one until its shapes are found."""
        shapes = self._shapes.found(prompt_size)
        return 1 if shapes is None else shapes.most

    def _start(self, size: int, images: Tensor, requests: list[ReadyPlan]) -> list[PlanUnderWay]:
        group = self._groups.setdefault(size, _Group())
        shapes = self._shapes.of(size)
        if not group.by_row:
            shapes.of(len(requests))  # tried in the slots if it has not been, so none of them may be taken
        rows = list(itertools.islice(group.free(), len(requests)))
        bias = [request.bias for request in requests if request.bias is not None]
        span = Span(self._vlm.device)
        shape = BatchShape(shapes.known(1).reads, shapes.most)
        if max(rows) >= shape.rows:
            raise RuntimeError(f"{len(group.by_row) + len(rows)} plans under way, and only {shape.rows} slots")
        group.plans, features = self._vlm.start(
            images,
            [request.prompt for request in requests],
            rows,
            shape,
            self._num_waypoints,
            torch.from_numpy(np.stack(bias)) if bias else None,
        )
        span.end()
        seen = features if self._shares else images
        plans = [PlanUnderWay(request, own, spans=[span]) for request, own in zip(requests, seen, strict=True)]
        group.by_row.update(zip(rows, plans, strict=True))
        return plans

    def _advance(self, size: int, group: _Group) -> list[PlanUnderWay]:
        assert group.plans is not None
        span = Span(self._vlm.device)
        last = all(plan.decoded == self._num_waypoints - 1 for plan in group.by_row.values())
        self._vlm.advance(group.plans, self._shapes.of(size).known(group.rows).rows, last)
        span.end()
        for plan in group.by_row.values():
            plan.decoded += 1
            plan.spans.append(span)
        rows = [row for row, plan in group.by_row.items() if plan.decoded == self._num_waypoints]
        if not rows:
            return []
        finished = [group.by_row.pop(row) for row in rows]
        values = fetch_later(rows_of(group.plans.values, rows))  # a copy: others take the slots
        for number, plan in enumerate(finished):
            plan.values = partial(_row, values, number)
        return finished


def _row(values: Callable[[], IntArray], number: int) -> IntArray:
    row: IntArray = values()[number]
    return row
