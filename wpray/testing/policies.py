"""Conformance suite for policies: what a run relies on, checked on a policy of your own in a test.

from wpray.testing.policies import check_policy

def test_my_policy_conforms() -> None:
    check_policy("my_lab.policy:MyPolicy", {"checkpoint": "weights.pt"})
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from wpray.benchmarks.factory import STAND_IN_SUITE
from wpray.config import Config
from wpray.errors import wrapping_errors
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.factory import build_policy, spec_mistake
from wpray.testing.policy_requests import first_requests, segment_requests, unanswerable
from wpray.types import (
    MAX_SEGMENT_STEPS,
    ChunkReply,
    ChunkRequest,
    PlanReply,
    PlanRequest,
    PolicyRequest,
    SegmentReply,
    SegmentRequest,
    first_executable,
)

Answer = Callable[[Sequence[Any]], Sequence[Any]]
PolicyMethod = Literal["plan", "act", "predict"]


class ConformanceError(AssertionError):
    """The policy does not keep what a run relies on; the message has a line for each check that failed."""


def check_policy(
    policy: AnyPolicy | str,
    policy_args: Mapping[str, Any] | None = None,
    *,
    config: Config | None = None,
    suite: str = STAND_IN_SUITE,
    benchmark: str = "auto",
    count: int = 7,
    tolerance: float = 0.0,
    seed: int = 0,
) -> tuple[str, ...]:
    """Check a policy, or the one that a name or import path means, and return the names of the checks that it passed.

    Its requests are `count` observations of `suite`, which `benchmark` has. `config` replaces the default configuration
    that a named policy is built with. `tolerance`: the largest difference between a reply alone and the same in a
    batch; 0 means equal bits, without which an episode's outcome may depend on the episodes beside it. Raises
    ConformanceError naming every check that failed, and BadInputError for a policy that cannot be loaded.
    """
    default = Config(task_suite=suite, benchmark=benchmark, policy="noop") if config is None else config
    made = _built(policy, policy_args, default) if isinstance(policy, str) else policy
    _require({"spec": lambda: _check_spec(made.spec)})
    passed = ["spec"]
    requests = first_requests(made.spec, (suite, benchmark), max(2, count), seed)
    tried = _MethodCheck(made, "predict" if made.spec.kind == "chunk" else "plan", requests, tolerance)
    passed += tried.run()
    if tried.method == "plan":
        segments = segment_requests(cast(Sequence[PlanRequest], requests), tried.alone)
        passed += _MethodCheck(made, "act", segments, tolerance).run() if segments else []
    return tuple(passed)


@dataclass
class _MethodCheck:
    """One method of a policy, and requests to try it with."""

    policy: AnyPolicy
    method: PolicyMethod
    requests: Sequence[PolicyRequest]
    tolerance: float

    def __post_init__(self) -> None:
        self.answer: Answer = getattr(self.policy, self.method)
        self.alone: list[Any] = []  # replies to the requests, each asked alone
        self.prepare: Callable[[Any], Any] | None = getattr(self.policy, "prepare", None)

    def run(self) -> list[str]:
        """Run every check and return their names. Raises ConformanceError."""
        others = [self.replies, self.determinism, self.batches, self.order, self.errors]
        if self.prepare is not None:
            others.append(self.preparation)
        return [*self._require([self.answers]), *self._require(others)]

    def _require(self, checks: Sequence[Callable[[], None]]) -> list[str]:
        return _require({f"{self.method}: {check.__name__}": check for check in checks})

    def answers(self) -> None:
        """Check that each request gets a reply, asked alone."""
        self.alone = [self._one(request) for request in self.requests]

    def replies(self) -> None:
        """Check shapes and values: what the harness would refuse, or the simulator fail on silently."""
        for request, reply in zip(self.requests, self.alone, strict=True):
            _REPLIES[self.method](self.policy.spec, request, reply)

    def determinism(self) -> None:
        """Check that the same request gets the same reply again, after others were answered."""
        for request, reply in zip(self.requests, self.alone, strict=True):
            self._compare(self._one(request), reply, "the same request, asked again,", exact=True)

    def batches(self) -> None:
        """Check that a reply does not depend on the requests beside it, for every size up to the largest."""
        most = min(len(self.requests), self.policy.spec.max_batch_size)
        for size in range(2, most + 1):
            for start in range(0, len(self.requests) - size + 1):
                self._compare_batch(range(start, start + size), f"a batch of {size}")

    def order(self) -> None:
        """Check that replies come in the order of their requests, also in reverse."""
        most = min(len(self.requests), self.policy.spec.max_batch_size)
        self._compare_batch(range(most - 1, -1, -1), f"a batch of {most} in reverse")

    def errors(self) -> None:
        """Check that a request that cannot be answered leaves the policy able to answer the others as before."""
        bad = unanswerable(self.requests[0])
        for batch in ([bad], [bad, *self.requests[1 : self.policy.spec.max_batch_size]]):
            with contextlib.suppress(Exception):  # an exception is right; SystemExit and the like would end a replica
                self.answer(batch)
        for request, reply in zip(self.requests, self.alone, strict=True):
            self._compare(self._one(request), reply, "after an error, a request", exact=True)

    def preparation(self) -> None:
        """Check that requests prepared by several threads are of the same kind and get the same replies."""
        assert self.prepare is not None
        with ThreadPoolExecutor(4) as pool:
            ready = list(pool.map(self.prepare, self.requests))
        for request, prepared, reply in zip(self.requests, ready, self.alone, strict=True):
            if not isinstance(prepared, type(request)):
                raise AssertionError(f"prepare gives {type(prepared).__name__} for {type(request).__name__}")
            self._compare(self._one(prepared), reply, "a prepared request")

    def _one(self, request: PolicyRequest) -> Any:
        return self._answered([request], "one request")[0]

    def _answered(self, requests: Sequence[PolicyRequest], what: str) -> Sequence[Any]:
        replies = self.answer(requests)
        if len(replies) != len(requests):
            raise AssertionError(f"{what} got {len(replies)} replies")
        return replies

    def _compare_batch(self, indexes: Sequence[int], what: str) -> None:
        replies = self._answered([self.requests[index] for index in indexes], what)
        for index, reply in zip(indexes, replies, strict=True):
            self._compare(reply, self.alone[index], f"request {index} in {what}")

    def _compare(self, reply: object, alone: object, what: str, exact: bool = False) -> None:
        far = _distance(reply, alone)
        if not far <= (0.0 if exact else self.tolerance):
            raise AssertionError(f"{what} gets another reply than alone (largest difference {far:g})")


def _built(target: str, policy_args: Mapping[str, Any] | None, config: Config) -> AnyPolicy:
    changes: dict[str, Any] = {"policy": target} | ({} if policy_args is None else {"policy_args": dict(policy_args)})
    return build_policy(config.model_copy(update=changes))


def _require(checks: Mapping[str, Callable[[], None]]) -> list[str]:
    """Run all checks and return their names. Raises ConformanceError with a line for each that failed."""
    failed = [text for name, check in checks.items() if (text := _failure(name, check)) is not None]
    if failed:
        raise ConformanceError("\n".join(failed))
    return list(checks)


def _failure(name: str, check: Callable[[], None]) -> str | None:
    """Run a check; return None if it passes, else its name and what was raised, also by the policy's own code."""

    def described(error: Exception) -> ConformanceError:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return ConformanceError(f"{name}: {kind}{error}")

    try:
        with wrapping_errors(described):
            check()
    except ConformanceError as error:
        return str(error)
    return None


def _check_spec(spec: PolicySpec) -> None:
    mistake = spec_mistake(spec)
    if mistake:
        raise AssertionError(f"spec must be a PolicySpec, {mistake}")
    with wrapping_errors(lambda error: AssertionError(f"spec does not travel to another process: {error}")):
        pickle.dumps(spec)


def _check_chunk(spec: PolicySpec, _: ChunkRequest, reply: ChunkReply) -> None:
    _check_actions(reply.actions, max(1, spec.execute_steps), spec.action.dim)
    if reply.rest is not None:
        _check_actions(reply.rest, len(reply.rest), spec.action.dim)
    for name, value in reply.metrics.items():
        if not isinstance(name, str) or not np.isscalar(value):
            raise AssertionError(f"metric {name!r} is {value!r}, not a number with a name")


def _check_plan(spec: PolicySpec, request: PlanRequest, reply: PlanReply) -> None:
    waypoints, durations = reply.plan.waypoints, reply.plan.durations
    if waypoints.ndim != 2 or durations.shape != waypoints.shape[:1]:
        raise AssertionError(f"a plan has waypoints of shape {waypoints.shape} and durations of {durations.shape}")
    if not np.isfinite(waypoints).all() or not np.isfinite(reply.plan.start).all():
        raise AssertionError("a plan has a waypoint that is not finite")
    if not np.issubdtype(durations.dtype, np.integer):
        raise AssertionError(f"durations are {durations.dtype}, not whole numbers")
    first = first_executable(durations)
    if first is None:
        return
    if reply.first is None:
        raise AssertionError("a plan that executes a waypoint comes without its first segment")
    _check_actions(reply.first.actions, min(int(durations[first]), MAX_SEGMENT_STEPS), spec.action.dim)


def _check_segment(spec: PolicySpec, request: SegmentRequest, reply: SegmentReply) -> None:
    _check_actions(reply.segment.actions, request.duration, spec.action.dim)


def _check_actions(actions: Any, steps: int, width: int) -> None:
    found = np.asarray(actions, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] < steps or found.shape[1] != width:
        raise AssertionError(f"actions have shape {found.shape}, expected ({steps} or more, {width})")
    if not np.isfinite(found[:steps]).all():
        raise AssertionError("an action is not finite")


_REPLIES: Mapping[PolicyMethod, Callable[[PolicySpec, Any, Any], None]] = {
    "predict": _check_chunk,
    "plan": _check_plan,
    "act": _check_segment,
}


def _distance(a: Any, b: Any) -> float:
    """Return the largest difference between two replies, times apart; infinity if they are of different form."""
    if type(a) is not type(b):
        return np.inf
    if isinstance(a, np.ndarray):
        if a.shape != b.shape:
            return np.inf
        equal = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        return 0.0 if equal else float(np.max(np.abs(a.astype(float) - b.astype(float))))
    if is_dataclass(a):
        names = [field.name for field in fields(a) if field.name not in ("timing", "space")]
        return max((_distance(getattr(a, name), getattr(b, name)) for name in names), default=0.0)
    if isinstance(a, Mapping):
        return max(map(partial(_item_distance, a, b), a), default=0.0) if a.keys() == b.keys() else np.inf
    if isinstance(a, float):
        return 0.0 if a == b or (a != a and b != b) else abs(a - b)
    return 0.0 if a == b else np.inf


def _item_distance(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> float:
    return _distance(a[name], b[name])
