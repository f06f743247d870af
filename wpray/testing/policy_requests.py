"""Requests to try a policy with: what it would see at several steps of several trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from wpray.benchmarks.factory import benchmark_of, list_tasks
from wpray.policies.base import PolicySpec
from wpray.types import (
    MAX_SEGMENT_STEPS,
    ChunkRequest,
    Observation,
    PlanReply,
    PlanRequest,
    PolicyRequest,
    SegmentRequest,
    Trial,
    first_executable,
)


def first_requests(
    spec: PolicySpec, suite: tuple[str, str], count: int, seed: int
) -> list[PlanRequest] | list[ChunkRequest]:
    """Return `count` plan or chunk requests with different trials, instructions, indexes and observations.

    `suite`: its name, and the setting `benchmark`.
    """
    seen = _observations(spec, *suite, count, seed)
    if spec.kind == "chunk":
        return [ChunkRequest(trial, index % 3, observation) for index, (trial, observation) in enumerate(seen)]
    return [
        PlanRequest(trial, index % 3, 5 * (index % 3), observation) for index, (trial, observation) in enumerate(seen)
    ]


def segment_requests(requests: Sequence[PlanRequest], replies: Sequence[PlanReply]) -> list[SegmentRequest]:
    """Return a request for the second segment that each of the plans executes; none of a plan that has only one."""
    found = []
    for request, reply in zip(requests, replies, strict=True):
        plan = reply.plan
        first = first_executable(plan.durations)
        rest = None if first is None else first_executable(plan.durations[first + 1 :])
        if first is None or rest is None:
            continue
        second = first + 1 + rest
        duration = min(int(plan.durations[second]), MAX_SEGMENT_STEPS)
        start, end, index = plan.waypoints[first], plan.waypoints[second], request.segment_index + 1
        trial, seen = request.trial, request.observation
        found.append(SegmentRequest(trial, request.plan_index, index, seen, start, end, duration))
    return found


def unanswerable(request: PolicyRequest) -> PolicyRequest:
    """Return the request as it must not arrive: without images, and with a proprio that is not a number."""
    seen = request.observation
    return replace(request, observation=replace(seen, images={}, proprio=np.full_like(seen.proprio, np.nan)))


def _observations(
    spec: PolicySpec, suite: str, benchmark: str, count: int, seed: int
) -> Iterator[tuple[Trial, Observation]]:
    rng, found = np.random.default_rng(seed), benchmark_of(suite, benchmark)
    tasks, action = list_tasks(suite, benchmark=benchmark), found.action_spec(suite)
    env = found.make_environment(suite, "wpray")
    try:
        for index in range(count):
            task = tasks[index % len(tasks)]
            trial = Trial(task, index // len(tasks) % task.num_trials, seed)
            env.load(task)
            env.reset(trial)
            for _ in range(3 * (index % 4)):
                env.step(action.scaled(rng.uniform(-1, 1, action.dim)))
            yield trial, env.observe(spec.observation)
    finally:
        env.close()
