"""Events of a run's actors, in one queue, so that the driver's loop handles one after the other."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from wpray.cluster.gather import cause_of
from wpray.errors import BadInputError
from wpray.orchestration.actors import ActorHost, Attempt
from wpray.orchestration.scheduler import Assignment, SceneKey
from wpray.policies.base import Sources


@dataclass(frozen=True, slots=True)
class ActorFailure:
    """Reason why an actor is gone."""

    reason: str
    bad_input: bool  # the machine or the files are at fault, and the reason names the remedy


@dataclass(frozen=True, slots=True)
class EnvReady:
    """Event: an env actor has started and is idle."""

    worker: str
    host: ActorHost
    scene: SceneKey | None = None  # scene that it has compiled in an earlier run


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """Event: an attempt came back."""

    assignment: Assignment
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class EnvLost:
    """Event: an env actor is gone, with its assignment."""

    worker: str
    failure: ActorFailure
    started: bool  # False if it never became ready


@dataclass(frozen=True, slots=True)
class PolicyReady:
    """Event: a policy replica has loaded."""

    replica: int
    host: ActorHost
    load_s: float
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True, slots=True)
class PolicyHashed:
    """Event: the digests of the policy's files are computed."""

    hashes: dict[str, str]  # SHA-256 by path


@dataclass(frozen=True, slots=True)
class PolicyLost:
    """Event: no policy replica is left, and none is restarted."""

    failure: ActorFailure


@dataclass(frozen=True, slots=True)
class RenderReady:
    """Event: a render actor can draw."""

    renderer: int
    host: ActorHost


@dataclass(frozen=True, slots=True)
class RenderLost:
    """Event: no render actor is left, and none is restarted."""

    failure: ActorFailure


Event = EnvReady | AttemptFinished | EnvLost | PolicyReady | PolicyHashed | PolicyLost | RenderReady | RenderLost
Handler = Callable[[Future[Any]], Event | None]


class EventQueue:
    """Queue that turns the results of Ray calls into events, on the thread that takes them."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[Handler, Future[Any]]] = queue.SimpleQueue()

    def watch(self, reference: Any, handler: Handler) -> None:
        """Let `handler` make the event of the call behind `reference`, once it has ended."""
        reference.future().add_done_callback(lambda future: self._arrived.put((handler, future)))

    @property
    def empty(self) -> bool:
        """True if nothing has arrived that `next` has not returned yet."""
        return self._arrived.empty()

    def next(self, timeout_s: float) -> Event | None:
        """Return the next event; None if nothing came within `timeout_s`, or nothing of interest."""
        try:
            handler, future = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return handler(future)


def failure_of(error: BaseException | None) -> ActorFailure:
    """Describe the exception of a Ray call in one line."""
    cause = cause_of(error)
    if isinstance(cause, BadInputError):
        return ActorFailure(str(cause), bad_input=True)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ActorFailure(f"{type(cause).__name__}: {' '.join(lines)[:500]}", bad_input=False)
