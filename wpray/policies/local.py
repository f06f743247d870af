"""Client of a policy in the same process, for tests, notebooks and single-process runs."""

from __future__ import annotations

from typing import Any

from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.types import ChunkReply, ChunkRequest, PlanReply, PlanRequest, SegmentReply, SegmentRequest


class LocalPolicyClient:
    """Client that answers each request at once, as a batch of one. It raises what the policy raises."""

    def __init__(self, policy: AnyPolicy) -> None:
        self._policy: Any = policy  # of either kind: `spec` says which methods it has
        self.spec: PolicySpec = policy.spec

    def plan(self, request: PlanRequest) -> PlanReply:
        """Return the plan and its first segment."""
        reply: PlanReply = self._policy.plan([request])[0]
        return reply

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Return one segment."""
        reply: SegmentReply = self._policy.act([request])[0]
        return reply

    def predict(self, request: ChunkRequest) -> ChunkReply:
        """Return one chunk."""
        reply: ChunkReply = self._policy.predict([request])[0]
        return reply
