"""Relay of requests to a policy in another process, which passes each on at once and batches nothing.

It replaces a Batcher where the policy's spec is `remote` and its requests are not batched. A wait for another process
is no sign of a hang, so a relay never counts as busy. No request can kill it, so a retry is like any other request.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from wpray.config.groups import BatchingConfig
from wpray.policies.base import AnyPolicy, ChunkPolicy
from wpray.policies.batching import Batcher
from wpray.policies.request_queue import PolicyError, checked_replies, tried
from wpray.types import ChunkReply, ChunkRequest, Failure, PlanReply, PlanRequest, SegmentReply, SegmentRequest, Timing


class Relay:
    """Relay of requests of many threads to a chunk policy that supports concurrent calls."""

    busy_since: float | None = None

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._under_way, self._since = 0, 0.0
        self.busy_s = 0.0  # total seconds with a request under way
        self.batches = 0  # number of requests

    def check(self) -> None:
        """Raise nothing: there is no thread that could die."""

    def close(self) -> None:
        """Close the policy's connections, if it has any."""
        close = getattr(self._policy, "close", None)
        if close is not None:
            close()

    def predict(
        self,
        request: ChunkRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> ChunkReply:
        """Return the policy's answer. Raise PolicyError. Nothing is announced and nothing dropped."""
        began = time.perf_counter()
        with self._counted():
            reply = tried(lambda: self._only(request))
        if isinstance(reply, PolicyError):
            raise reply
        if reply.timing.compute_s:  # as the policy measured it
            return reply
        return dataclasses.replace(reply, timing=Timing(0.0, time.perf_counter() - began, 1))

    def plan(
        self,
        request: PlanRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> PlanReply:
        """Raise PolicyError: a policy behind a relay answers with chunks."""
        raise _no_chunk()

    def act(
        self,
        request: SegmentRequest,
        announce: Callable[[], None] | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> SegmentReply:
        """Raise PolicyError: a policy behind a relay answers with chunks."""
        raise _no_chunk()

    def _only(self, request: ChunkRequest) -> ChunkReply:
        reply: ChunkReply = checked_replies("predict", self._policy.predict([request]), 1)[0]
        return reply

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._since = self._since if self._under_way else time.monotonic()
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self.batches += 1
                if not self._under_way:
                    self.busy_s += time.monotonic() - self._since


Answering = Batcher | Relay


def answering(policy: AnyPolicy, batching: BatchingConfig) -> Answering:
    """Return the receiver of a policy's requests: a Batcher, or a Relay if another process answers each of them."""
    spec = policy.spec
    if spec.remote and spec.max_batch_size == 1:
        return Relay(cast(ChunkPolicy, policy))
    return Batcher(policy, min(batching.max_batch_size, spec.max_batch_size), batching.max_wait_ms / 1000)


def _no_chunk() -> PolicyError:
    return PolicyError(Failure("policy", "TypeError", "a policy that answers elsewhere has chunks only"))
