"""Ray and the actors of one run, or of several runs one after the other."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console

from wpray.cluster.setup import policy_actors, ray_is_running, running_ray
from wpray.config import Config
from wpray.orchestration.actors import RunContext
from wpray.orchestration.env_actor_pool import EnvActorPool
from wpray.orchestration.events import EventQueue
from wpray.orchestration.live_policy import LivePolicyPool
from wpray.orchestration.policy_actor_pool import PolicyActorPool
from wpray.policies.base import AnyPolicy, PolicySpec


@dataclass(frozen=True, slots=True)
class Policies:
    """Policy actors of a run, and what happens to its actors."""

    context: RunContext  # of the policy; the run's own adds what its folder says
    events: EventQueue
    pool: PolicyActorPool
    size: int  # replicas


class Pools:
    """Keeper of Ray and of the actors on it; a context manager that ends them."""

    def __init__(self, *, keeps_env_actors: bool = False) -> None:
        """Keep the env actors of a run for the next one, whose environments must be the same, if `keeps_env_actors`."""
        self._keeps, self._stack = keeps_env_actors, contextlib.ExitStack()
        self._env_actors: EnvActorPool | None = None

    def __enter__(self) -> Pools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.end_env_actors()

    def join_ray(self, config: Config, console: Console) -> None:
        """Start or join Ray, unless it runs already: from an earlier run, or the caller's own in Python."""
        if ray_is_running():
            return
        with console.status("starting Ray") if console.is_terminal else contextlib.nullcontext():
            self._stack.enter_context(running_ray(config))

    @contextlib.contextmanager
    def policies(self, config: Config, spec: PolicySpec, live: AnyPolicy | None) -> Iterator[Policies]:
        """Yield the policy actors of a run, or the `live` policy in their place, and end them afterwards.

        Raises BadInputError if no node has room for one.
        """
        found = _started(config, spec, live)
        try:
            yield found
        finally:
            if not self._keeps:
                self.end_env_actors()
            found.pool.close()

    def env_actors(self, context: RunContext, policies: Policies) -> EnvActorPool:
        """Return the run's pool of env actors: those of the run before if they are kept, else an empty one."""
        if self._env_actors is None:
            self._env_actors = EnvActorPool(context, policies.pool.handles, policies.events)
        else:
            self._env_actors.hand_over(context, policies.pool.handles, policies.events)
        return self._env_actors

    def end_env_actors(self) -> None:
        """End the env actors that are left."""
        if self._env_actors is not None:
            self._env_actors.close()
        self._env_actors = None


def _started(config: Config, spec: PolicySpec, live: AnyPolicy | None) -> Policies:
    context = RunContext("", config, secrets.token_bytes(32), spec=spec)
    events = EventQueue()
    if live is not None:
        return Policies(context, events, LivePolicyPool(context, live, events), 1)
    size, num_gpus = policy_actors(config, spec.num_gpus)
    return Policies(context, events, PolicyActorPool(context, num_gpus, size, events), size)
