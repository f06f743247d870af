"""Render actors, which draw the observations of all environments, beside the policy's GPUs."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wpray.orchestration.actors import LoadedReplica, RenderActor, Renderers, RunContext
from wpray.orchestration.events import ActorFailure, Event, EventQueue, RenderLost, RenderReady
from wpray.orchestration.serving_actor_pool import ServingActorPool


class RenderActorPool(ServingActorPool):
    """Pool of render actors by number. Not thread-safe."""

    kind = "render"

    def __init__(self, context: RunContext, count: int, places: Sequence[str], events: EventQueue) -> None:
        """Start `count` actors for the benchmark of `context`, in turn on `places` (ids of nodes; none: anywhere).

        `check` returns a RenderReady event for each that is ready, else a RenderLost.
        """
        self._key = secrets.token_bytes(32)
        own = replace(context.for_environments(), key=self._key)
        super().__init__(context, _started(own, count, places), events)

    @property
    def renderers(self) -> Renderers:
        """Actors and key, for env actors."""
        return Renderers(self.handles, self._key)

    @property
    def is_lost(self) -> bool:
        """True if no actor is left."""
        return all(replica.gone for replica in self._replicas)

    def hand_over(self, context: RunContext, events: EventQueue) -> None:
        """Report to another run from now on; a RenderReady event follows of each actor."""
        self._stall_s, self._events, self._next_check = context.config.retry.stall_s, events, 0.0
        for replica in self._replicas:
            replica.requested, replica.loaded = None, False

    def on_ready(self, number: int, loaded: LoadedReplica) -> Event:
        """Return a RenderReady."""
        return RenderReady(number, loaded.host)

    def on_lost(self, failure: ActorFailure) -> Event:
        """Return a RenderLost."""
        return RenderLost(failure)


def _started(context: RunContext, count: int, places: Sequence[str]) -> Iterator[Any]:
    there = Counter[str]()
    for number in range(count):
        node = places[number % len(places)] if places else ""
        # Soft: a node that goes away is not waited for. Ray puts what demands nothing anywhere, so it demands a byte.
        near = NodeAffinitySchedulingStrategy(node, soft=True) if node else "DEFAULT"
        yield RenderActor.options(scheduling_strategy=near, memory=1).remote(number, context, there[node])
        there[node] += 1
