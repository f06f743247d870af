"""What happens to a run's actors, as events in one queue, so that the driver's loop takes one after the other."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from wpray.cluster.gather import cause_of
from wpray.errors import BadInputError
from wpray.orchestration.actors import Attempt, Host
from wpray.orchestration.scheduler import Assignment
from wpray.policies.base import Sources


@dataclass(frozen=True, slots=True)
class ActorFailure:
    """Reason why an actor is gone."""

    reason: str
    bad_input: bool  # its machine or its files are at fault, and the reason names the remedy


@dataclass(frozen=True, slots=True)
class Ready:
    """An env actor has started and is idle."""

    worker: str
    host: Host


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt came back."""

    assignment: Assignment
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Lost:
    """An env actor is gone, with whatever it had in hand."""

    worker: str
    failure: ActorFailure
    started: bool  # False if it never became ready: a machine that cannot run it


@dataclass(frozen=True, slots=True)
class PolicyReady:
    """A policy replica has loaded."""

    replica: int
    host: Host
    load_s: float
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What the policy was loaded from is known by its content."""

    hashes: dict[str, str]  # SHA-256 by path


@dataclass(frozen=True, slots=True)
class PolicyLost:
    """No policy replica is left, nor will one come back."""

    failure: ActorFailure


Event = Ready | Finished | Lost | PolicyReady | PolicyFiles | PolicyLost
Handler = Callable[[Future[Any]], Event | None]


class EventQueue:
    """Turns what Ray calls come to into events, on the thread that asks for them."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[Handler, Future[Any]]] = queue.SimpleQueue()

    def watch(self, reference: Any, handler: Handler) -> None:
        """When the call behind `reference` has ended, `handler` makes the event of it."""
        reference.future().add_done_callback(lambda future: self._arrived.put((handler, future)))

    @property
    def empty(self) -> bool:
        """Whether nothing has arrived that `next` has not given yet."""
        return self._arrived.empty()

    def next(self, timeout_s: float) -> Event | None:
        """The next event; None if nothing came within `timeout_s`, or nothing of interest."""
        try:
            handler, future = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return handler(future)


def failure_of(error: BaseException | None) -> ActorFailure:
    """One line for an exception that a Ray call ended in."""
    cause = cause_of(error)
    if isinstance(cause, BadInputError):
        return ActorFailure(str(cause), bad_input=True)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ActorFailure(f"{type(cause).__name__}: {' '.join(lines)[:500]}", bad_input=False)
