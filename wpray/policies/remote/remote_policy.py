"""Base of policies behind servers: one pool of servers, one message per request, checked answers."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from wpray.policies.base import NOTICES, PolicyCheck, PolicySpec, Sources
from wpray.policies.remote.answers import GripperWatch, chunk_of
from wpray.policies.remote.doctor import server_check
from wpray.policies.remote.pool import Channel, ServerPool
from wpray.types import ChunkReply, ChunkRequest, FloatArray

_NOTICES = logging.getLogger(NOTICES)


class RemotePolicy(ABC):
    """Chunk policy that another process computes; many threads may call it at once."""

    name: str

    def __init__(self, settings: Any, patient: bool = True) -> None:
        """Connect, and wait until a server answers. Raise BadInputError if all that answer refuse this client.

        If it is not `patient`, a server that does not answer raises BadInputError, too, now and later.
        """
        self._settings, self.spec = settings, self.spec_of(settings)
        self._gripper = GripperWatch(partial(_NOTICES.warning, "%s: %s", self.name))
        self._pool = ServerPool(self.name, settings.url, self.connect, settings.connections, patient=patient)
        self._pool.wait_for_server()
        self.sources = self._sources()

    @classmethod
    @abstractmethod
    def spec_of(cls, settings: Any) -> PolicySpec:
        """Return the spec with the observations that servers receive."""

    @classmethod
    def doctor_checks(cls, settings: Any) -> list[PolicyCheck]:
        """Return the check that each server answers."""
        return [server_check(cls, settings)]

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """Descriptions of the servers that were reached."""
        return self._pool.facts

    @abstractmethod
    def connect(self, url: str) -> Channel:
        """Return an open channel. Raise ServerTrouble, BadInputError for a server that this run cannot use."""

    @abstractmethod
    def message(self, request: ChunkRequest) -> Any:
        """Return the message to a server. Raise InvalidRequestError for a request that has none."""

    @abstractmethod
    def reply(self, answer: Any) -> ChunkReply:
        """Return the reply that a server's answer stands for. Raise InvalidRequestError for one without actions."""

    @abstractmethod
    def conventions(self) -> dict[str, str]:
        """Return descriptions of requests and of the use of actions, for run.json and the log."""

    def oddities(self, said: Mapping[str, Any]) -> Iterable[str]:
        """Return what in a server's description may not fit, each as the end of a sentence about the server."""
        return ()

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request; any number of threads may call this."""
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        answer, timing = self._pool.call_timed(self.message(request))
        return replace(self.watched(self.reply(answer), request), timing=timing)

    def watched(self, reply: ChunkReply, request: ChunkRequest) -> ChunkReply:
        """Return the reply, once what it commands the gripper is noted."""
        if len(reply.actions):
            self._gripper.see(reply.actions)
            self._gripper.see_start(reply.actions, request)
        return reply

    def from_unit_gripper(self, found: Any, executable: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Return actions whose gripper is 0 closed .. 1 open as `executable` makes them LIBERO's."""
        actions = chunk_of(self.name, found)
        self._gripper.see_unit(actions)
        return executable(actions)

    def note_of(self, url: str) -> Any:
        """Return a function that logs a line about a server."""
        return partial(_NOTICES.warning, "%s: %s: %s", self.name, url)

    def _sources(self) -> Sources:
        facts, conventions = self.facts, self.conventions()
        warnings = [f"{self.name}: {url} {text}" for url, said in facts.items() for text in self.oddities(said)]
        lines = [f"{self.name}: {url} says of itself {json.dumps(said)[:500]}" for url, said in facts.items() if said]
        how = "; ".join(f"{name}: {text}" for name, text in conventions.items())
        found = {"servers": dict(facts), "conventions": conventions}
        return Sources(found, (*lines, f"{self.name}: {how}"), tuple(warnings))
