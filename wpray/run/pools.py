"""Ray and the actors of one run, or of several runs one after the other."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from rich.console import Console

from wpray.cluster.setup import (
    env_actors_in_memory,
    env_actors_that_fit,
    gpu_places,
    policy_actors,
    ray_is_running,
    running_ray,
)
from wpray.config import Config
from wpray.orchestration.actors import RunContext
from wpray.orchestration.env_actor_pool import EnvActorPool
from wpray.orchestration.events import EventQueue
from wpray.orchestration.live_policy import LivePolicyPool
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.orchestration.render_actor_pool import RenderActorPool
from wpray.orchestration.sizing import SizeLimits, Sizer
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.environments import LEAST_A_CORE, Suited
from wpray.run.output import RunInfo

_LOG = logging.getLogger(__name__)
# Shares of a GPU, in turn, of the policies of runs that follow each other: two replicas of one run never share a GPU,
# and a replica of the next run always fits beside one.
_SHARES = (0.6, 0.4)


@dataclass(frozen=True, slots=True)
class Policies:
    """Policy actors of a run, and what happens to its actors."""

    context: RunContext  # of the policy; the run's own adds what its folder says
    events: EventQueue
    pool: PolicyActorPool
    size: int  # replicas
    share: float | None = None  # of a GPU for each replica, where runs take turns on it


class Pools:
    """Keeper of Ray and of the actors on it; a context manager that ends them."""

    def __init__(self, *, for_many_runs: bool = False) -> None:
        """Begin without actors.

        `for_many_runs`: the env actors of a run serve the next one, whose environments must be the same, and its policy
        may load while this one's answers.
        """
        self._for_many, self._stack = for_many_runs, contextlib.ExitStack()
        self._environments: Suited | None = None
        self._env_actors: EnvActorPool | None = None
        self.render_actors: RenderActorPool | None = None  # of the env actors, if they do not draw by themselves
        self._current: Policies | None = None
        self._ahead: Policies | None = None

    def __enter__(self) -> Pools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.end_env_actors()
            self._end_ahead()

    def join_ray(self, config: Config, console: Console, environments: Suited | None = None) -> None:
        """Start or join Ray as `start_ray` does, unless it runs already: of an earlier run, or the caller's own.

        A Ray that it starts has room for `environments`; None: for one a core.
        """
        if ray_is_running():
            return
        with console.status("starting Ray") if console.is_terminal else contextlib.nullcontext():
            number = None if environments is None else environments.number
            self._stack.enter_context(running_ray(config, number))
        self._environments = environments

    def chosen(self, config: Config) -> Suited | None:
        """Return the number of environments for `auto` that this machine's Ray was started for, as corrected since.

        None if the number is configured, or if Ray is a cluster's or the caller's own.
        """
        return self._environments if config.num_env_actors == "auto" else None

    @contextlib.contextmanager
    def sizing(
        self, config: Config, number: int, env_actors: EnvActorPool, num_policies: int, info: RunInfo
    ) -> Iterator[Sizer | None]:
        """Yield what corrects the `number` of env actors of a run, and go on with its last one in the next run.

        None where the number is fixed.
        """
        chosen = self.chosen(config)
        if chosen is None:
            yield None
            return
        info.add_environments(number, chosen.because, save=False)
        env_actors.most_reserving = env_actors_that_fit(config)
        least, most = math.ceil(LEAST_A_CORE * chosen.cores), min(chosen.most, env_actors_in_memory(config))
        sizer = Sizer(number, SizeLimits(least, most, chosen.cores, chosen.places), num_policies)
        yield sizer
        if sizer.number != number:
            self._environments = replace(chosen, number=sizer.number, because="an earlier run was fastest with it")

    @contextlib.contextmanager
    def policies(self, config: Config, spec: PolicySpec, live: AnyPolicy | None) -> Iterator[Policies]:
        """Yield the policy actors of a run, or the `live` policy in their place, and end them afterwards.

        Raises BadInputError if no node has room for one.
        """
        found = self._current = self._taken(config) or self._started(config, spec, live, _SHARES[0])
        try:
            yield found
        finally:
            self._current = None
            if not self._for_many:
                self.end_env_actors()
            found.pool.close()

    def load_ahead(self, config: Config, spec: PolicySpec) -> None:
        """Let the policy of the next run load beside the current one's, once these say that there is memory for both.

        Their answers do not change. A policy that only asks servers has nothing to load.
        """
        current = self._current
        if current is None or self._ahead is not None or spec.remote:
            return
        room: list[bool] = []

        def measured(future: Future[Any]) -> None:
            room.append(future.exception() is None and future.result().has_room)
            if len(room) == current.size and all(room) and self._current is current:
                share = _SHARES[current.share == _SHARES[0]]
                self._ahead = self._started(config, spec, None, share)
                _LOG.info("the next policy loads meanwhile")

        for handle in current.pool.handles:
            current.events.watch(handle.memory.remote(), measured)

    def env_actors(self, context: RunContext, policies: Policies, *, remote: bool = False) -> EnvActorPool:
        """Return the run's pool of env actors: those of the run before if they are kept, else an empty one.

        `remote`: render actors draw for them, and are kept or started with them.
        """
        handles, events, drawing = policies.pool.handles, policies.events, self.render_actors
        if (drawing is not None) != remote or (drawing is not None and drawing.is_lost):
            self.end_env_actors()
        if self._env_actors is None:
            drawing = self.render_actors = _render_actors(context, policies) if remote else None
            renderers = None if drawing is None else drawing.renderers
            self._env_actors = EnvActorPool(context, handles, events, renderers)
        else:
            if drawing is not None:
                drawing.hand_over(context, events)
            self._env_actors.hand_over(context, handles, events)
        return self._env_actors

    def end_env_actors(self) -> None:
        """End the env actors that are left, and what draws for them."""
        for pool in (self._env_actors, self.render_actors):
            if pool is not None:
                pool.close()
        self._env_actors = self.render_actors = None

    def _taken(self, config: Config) -> Policies | None:
        """Return the policy that was loaded ahead if it is that of `config`; end another."""
        ahead = self._ahead
        if ahead is not None and ahead.context.config == config:
            self._ahead = None
            return ahead
        self._end_ahead()
        return None

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.pool.close()
        self._ahead = None

    def _started(self, config: Config, spec: PolicySpec, live: AnyPolicy | None, share: float) -> Policies:
        context = RunContext("", config, secrets.token_bytes(32), spec=spec)
        events = EventQueue()
        if live is not None:
            return Policies(context, events, LivePolicyPool(context, live, events), 1)
        size, num_gpus = policy_actors(config, spec.num_gpus)
        if self._for_many and num_gpus == 1 and "GPU" not in config.ray.policy_resources:
            return Policies(context, events, PolicyActorPool(context, share, size, events), size, share)
        return Policies(context, events, PolicyActorPool(context, num_gpus, size, events), size)


def _render_actors(context: RunContext, policies: Policies) -> RenderActorPool:
    """Start render actors: as many as configured, else one for each GPU of the policy."""
    places, asked = gpu_places(), context.config.env.render_actors
    count = max(1, min(policies.size, len(places))) if asked == "auto" else asked
    return RenderActorPool(context, count, places, policies.events)
