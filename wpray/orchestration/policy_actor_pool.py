"""Policy actors of a run, and the digests of what they were loaded from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

from wpray.cluster.gather import cause_of
from wpray.cluster.setup import demands
from wpray.orchestration.actors import LoadedReplica, PolicyActor, RunContext
from wpray.orchestration.events import (
    ActorFailure,
    Event,
    EventQueue,
    PolicyHashed,
    PolicyLost,
    PolicyReady,
    failure_of,
)
from wpray.orchestration.serving_actor_pool import ServingActorPool

_LOG = logging.getLogger(__name__)


class PolicyActorPool(ServingActorPool):
    """Pool of policy actors by number. Not thread-safe."""

    kind = "policy"

    def __init__(
        self,
        context: RunContext,
        num_gpus: float,
        count: int,
        events: EventQueue,
        start: Callable[[int], Any] | None = None,
    ) -> None:
        """Start `count` replicas; `check` returns a PolicyReady event for each that loads, else a PolicyLost.

        `start` returns the handle of a replica by its number; default: an actor that loads the configured policy.
        """
        options = PolicyActor.options(**{**demands(context.config.ray.policy_resources), "num_gpus": num_gpus})
        start = start or (lambda number: options.remote(number, context))
        super().__init__(context, map(start, range(count)), events)

    def on_ready(self, number: int, loaded: LoadedReplica) -> Event:
        """Request the digests of the policy's files; return a PolicyReady."""
        self._events.watch(self.handles[number].file_hashes.remote(), partial(self._hashed, number))
        return PolicyReady(number, loaded.host, loaded.load_seconds, loaded.sources)

    def on_lost(self, failure: ActorFailure) -> Event:
        """Return a PolicyLost."""
        return PolicyLost(failure)

    def _hashed(self, number: int, future: Future[Any]) -> Event | None:
        error = future.exception()
        if error is None:
            return PolicyHashed(future.result())
        if isinstance(error, ray.exceptions.ActorUnavailableError) or isinstance(cause_of(error), ConnectionError):
            self._replicas[
                number
            ].loaded = False  # it died meanwhile; its digests are requested again after it has loaded
            return None
        _LOG.warning("policy-%d does not know what it was loaded from: %s", number, failure_of(error).reason)
        return PolicyHashed({})
