"""Selection of a policy replica: one on the env actor's own node unless it is crowded, else the least loaded.

Env actors select at the same moments, each on the loads that it sees. So that they do not all take the same replica,
those that see the same loads take turns by their numbers, and an env actor leaves its replica only for one that stays
less loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from wpray.cluster.gather import gather_within
from wpray.transport.connection import Address

_ANSWER_S = 5.0  # longest wait for a replica's address; one that takes longer is loading or gone
_PLACED_S = 20.0  # longest wait for a replica's GPUs; one that takes longer waits for a node, so it has none


@dataclass(frozen=True, slots=True)
class ReplicaGpus:
    """GPUs that a policy replica owns."""

    node: str  # Ray's id of its node
    names: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES


class ReplicaSelector:
    """Selector of a replica for one env actor."""

    def __init__(self, name: str, handles: Sequence[Any]) -> None:
        """Keep the `name` of the env actor, such as env-3, and the `handles` of the policy actors."""
        self._handles = handles
        self._number = int("".join(re.findall(r"\d+", name)) or 0)
        self._better: Address | None = None  # found by `should_rebalance`

    def select(self) -> Address:
        """Return the replica to connect to. Raises ConnectionError if none answers."""
        better, self._better = self._better, None
        if better is not None:
            return better
        known = self._addresses()
        if not known:
            raise ConnectionError("no policy replica answers yet")
        return select_replica(known, _this_node(), self._number)

    def should_rebalance(self, incarnation: str) -> bool:
        """Return whether an env actor should leave the replica of `incarnation`.

        `select` then returns the better one.
        """
        known = self._addresses() if len(self._handles) > 1 else []
        best = select_replica(known, _this_node(), self._number, incarnation) if known else None
        self._better = None if best is None or best.incarnation == incarnation else best
        return self._better is not None

    def gpus_here(self) -> list[str]:
        """Return the GPUs that replicas on this node own, as in CUDA_VISIBLE_DEVICES; wait for starting replicas."""
        owners = [gpus for _, gpus in gather_within([handle.gpus.remote() for handle in self._handles], _PLACED_S)]
        return [name for gpus in owners if gpus.node == _this_node() for name in gpus.names]

    def _addresses(self) -> list[Address]:
        return [
            address for _, address in gather_within([handle.address.remote() for handle in self._handles], _ANSWER_S)
        ]


def select_replica(known: Sequence[Address], here: str, number: int, current: str | None = None) -> Address:
    """Return the replica for env actor `number` on node `here`.

    `current` is the incarnation that it is connected to, if any. A replica on its own node is preferred: always at
    first, because the others may still start; later while it has less than its share of the connections.
    """
    others = [
        address.clients - (address.incarnation == current) for address in known
    ]  # without this env actor's own connection
    share = (sum(others) + 1) / len(known)

    def rank(place: int) -> tuple[bool, int, bool, int]:
        address, load = known[place], others[place]
        near = address.node == here and (current is None or load < share)
        return not near, load, address.incarnation != current, (place - number) % len(known)

    return known[min(range(len(known)), key=rank)]


def _this_node() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node
