"""A policy object of this very process, answering env actors as a policy actor does.

A small actor takes the place of the policy actor and returns its address, so that env actors connect as usual. There is
only one object, so it is never restarted.
"""

from __future__ import annotations

import time
from typing import Any

import ray

from wpray.orchestration.actors import ActorHealth, LoadedReplica, RunContext, own_address, this_host
from wpray.orchestration.events import ActorFailure, Event, EventQueue, PolicyLost
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.policies.base import AnyPolicy
from wpray.policies.relay import answering
from wpray.transport.connection import Address
from wpray.transport.policy_connection import PolicyServer
from wpray.transport.replica_selection import ReplicaGpus


class SignpostImpl:
    """Actor that returns the address of a policy in another process."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def address(self) -> Address:
        """Return where env actors connect."""
        return self._address

    def gpus(self) -> ReplicaGpus:
        """Return no GPU, because Ray has given the policy none."""
        return ReplicaGpus(self._address.node, ())

    def file_hashes(self) -> dict[str, str]:
        """Return nothing, because a live policy is not loaded from files."""
        return {}

    def health(self) -> ActorHealth:
        """Return that all is well; `LivePolicyPool` watches the policy itself."""
        return ActorHealth(0.0, 0.0, LoadedReplica(this_host(None), 0.0))


_remote: Any = ray.remote  # its stubs lack some of its options
Signpost = _remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=6)(SignpostImpl)


class LivePolicyPool(PolicyActorPool):
    """Stand-in for a run's policy actors, which serves a live policy."""

    def __init__(self, context: RunContext, policy: AnyPolicy, events: EventQueue) -> None:
        """Serve `policy` until `close`; it is called from a thread of its own, one batch at a time."""
        self._stall_after = context.config.retry.stall_s
        self._answering = answering(policy, context.config.batching)
        self._server = PolicyServer(self._answering, own_address(), context.key)
        node = ray.get_runtime_context().get_node_id()
        address = Address(self._server.host, self._server.port, 0, node, 0, self._server.incarnation)
        super().__init__(context, 0, 1, events, lambda _: Signpost.remote(address))

    @property
    def busy_s(self) -> float:
        """Seconds that the policy has computed."""
        return self._answering.busy_s

    def check(self) -> Event | None:
        """Return PolicyLost if the policy hangs, else the actor's event. Raise ThreadDiedError if none can connect."""
        self._answering.check()
        self._server.check()
        since = self._answering.busy_since
        if since is not None and time.monotonic() - since > self._stall_after:
            text = f"the live policy has not answered within retry.stall_s: {self._stall_after:g} s"
            return PolicyLost(ActorFailure(text, bad_input=False))
        return super().check()

    def close(self) -> None:
        """Stop serving."""
        super().close()
        self._server.close()
        self._answering.close()
