"""A policy object of this very process, answering env actors as a policy actor does.

A small actor takes the place of the policy actor and tells env actors where to connect, so that they need not know the
difference. There is one object, so nothing of it is restarted.
"""

from __future__ import annotations

import time
from typing import Any

import ray

from wpray.orchestration.actors import ActorHealth, LoadedReplica, RunContext, this_host
from wpray.orchestration.events import ActorFailure, Event, EventQueue, PolicyLost
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.policies.base import AnyPolicy
from wpray.policies.relay import answering
from wpray.transport.connection import Address, PolicyServer
from wpray.transport.replica_selection import ReplicaGpus


class SignpostImpl:
    """Names the address of a policy that another process serves."""

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


_remote: Any = ray.remote  # its stubs know only some of its options
Signpost = _remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=6)(SignpostImpl)


class LivePolicyPool(PolicyActorPool):
    """The live policy in place of a run's policy actors."""

    def __init__(self, context: RunContext, policy: AnyPolicy, events: EventQueue) -> None:
        """Serve `policy` until `close`; it is called from a thread of its own, one batch at a time."""
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._stall_after = context.config.retry.stall_s
        self._answering = answering(policy, context.config.batching)
        self._server = PolicyServer(self._answering, host, context.key)
        node = ray.get_runtime_context().get_node_id()
        address = Address(host, self._server.port, 0, node, 0, self._server.incarnation)
        super().__init__(context, 0, 1, events, lambda _: Signpost.remote(address))

    @property
    def busy_s(self) -> float:
        """Seconds that the policy has computed."""
        return self._answering.busy_s

    def check(self) -> Event | None:
        """Do what the pool does; return PolicyLost if the policy hangs. Raise ThreadDiedError if nobody can connect."""
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
