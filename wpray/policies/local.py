"""A policy in the same process: what tests, notebooks and single-process runs use in place of Ray."""

from __future__ import annotations

from wpray.policies.base import Policy, PolicySpec
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest


class LocalPolicyClient:
    """Answers each request at once, as a batch of one."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.spec: PolicySpec = policy.spec

    def plan(self, request: PlanRequest) -> PlanReply:
        """Answers one plan request; raises what the policy raises."""
        return self._policy.plan([request])[0]

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Answers one segment request; raises what the policy raises."""
        return self._policy.act([request])[0]
