"""Requests from env actors to a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wpray.policies.base import PolicySpec
from wpray.policies.relay import Answering
from wpray.policies.request_queue import PolicyError
from wpray.transport.connection import Address, Client, FatalRequestError, Server
from wpray.types import (
    ChunkReply,
    ChunkRequest,
    Failure,
    PlanReply,
    PlanRequest,
    PolicyReply,
    PolicyRequest,
    SegmentReply,
    SegmentRequest,
)

POLICY_DIED = "PolicyDiedError"  # kind of the PolicyError for a request that kills the policy


class PolicyServer(Server):
    """Server of a batcher or a relay."""

    def __init__(self, batcher: Answering, host: str, key: bytes) -> None:
        self._batcher = batcher
        super().__init__(self._reply, host, key)

    def _reply(
        self, request: PolicyRequest, announce: Callable[[], None] | None, gone: Callable[[], bool]
    ) -> PolicyReply:
        if isinstance(request, PlanRequest):
            return self._batcher.plan(request, announce, gone)
        if isinstance(request, ChunkRequest):
            return self._batcher.predict(request, announce, gone)
        return self._batcher.act(request, announce, gone)


class SocketPolicyClient(Client):
    """PolicyClient over a connection. It waits for a policy that is restarting, without a limit."""

    def __init__(self, spec: PolicySpec, select: Callable[[], Address], key: bytes, alive: Callable[[], None]) -> None:
        """Keep `spec`; the rest is as `Client` takes it."""
        super().__init__(select, key, alive)
        self.spec = spec

    def plan(self, request: PlanRequest) -> PlanReply:
        """Request a plan. Raises PolicyError if the policy failed on this request."""
        reply: PlanReply = self._reply(request)
        return reply

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Request a segment. Raises PolicyError if the policy failed on this request."""
        reply: SegmentReply = self._reply(request)
        return reply

    def predict(self, request: ChunkRequest) -> ChunkReply:
        """Return a chunk. Raises PolicyError if the policy failed on this request."""
        reply: ChunkReply = self._reply(request)
        return reply

    def _reply(self, request: PolicyRequest) -> Any:
        """Return the reply. Raises PolicyError, also if the request kills a policy actor alone."""
        try:
            reply = self._call(request)
        except FatalRequestError:
            message = "a policy actor died while it answered this request alone"
            raise PolicyError(Failure("policy", POLICY_DIED, message)) from None
        if isinstance(reply, PolicyError):
            raise reply
        return reply
