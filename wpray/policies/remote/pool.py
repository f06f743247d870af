"""Pool of servers of one policy: each request goes to the first free one, and is repeated until it is answered.

A server that hangs, closes the connection, answers nonsense, restarts or is not there yet costs time, never an
episode: its connection is opened again after a pause, while the request goes to the next free server.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import NOTICES
from wpray.policies.remote.trouble import RefusedError, ServerTrouble, in_one_line
from wpray.types import Timing

_NOTICES = logging.getLogger(NOTICES)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_REMIND_S = 60.0  # interval of the lines about a server that does not answer


class Channel(Protocol):
    """One open connection to a server, for one request at a time."""

    facts: Mapping[str, Any]  # the server's description of itself
    max_requests: int  # number of requests at once that suits the server, over as many connections

    def call(self, message: Any) -> Any:
        """Return the server's answer. Raise ServerTrouble if there is none, InvalidRequestError for its own error."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(slots=True)
class Outage:
    """Lines for the log about a server's outage: at its beginning, at its end, and now and then between them."""

    since: float | None = None
    reminded: float = 0.0

    def begin(self, trouble: Exception) -> str | None:
        """Return a line about the outage, unless there was one a moment ago."""
        now = time.monotonic()
        if self.since is None:
            self.since = self.reminded = now
            return f"does not answer ({in_one_line(trouble)}); requests are retried until it does"
        if now - self.reminded < _REMIND_S:
            return None
        self.reminded = now
        return f"has not answered for {now - self.since:.0f} s ({in_one_line(trouble)}); waiting"

    def end(self) -> str | None:
        """Return a line about the end of the outage, if there was one."""
        if self.since is None:
            return None
        away_s, self.since = time.monotonic() - self.since, None
        return f"answers again, after {away_s:.1f} s"


@dataclass(slots=True)
class _Server:
    """State of one server."""

    url: str
    facts: Mapping[str, Any] | None = None  # None until it has answered
    slots: int = 0
    outage: Outage = field(default_factory=Outage)


@dataclass(slots=True, eq=False)
class _Slot:
    """One of the connections that a server may have; it is opened when it is needed."""

    server: _Server
    channel: Channel | None = None
    retry_at: float = 0.0
    pause_s: float = field(default_factory=lambda: _FIRST_PAUSE_S)


@dataclass(slots=True, eq=False)
class _Waiter:
    """Request that waits for a slot."""

    slot: _Slot | None = None
    ready: threading.Event = field(default_factory=threading.Event)


class ServerPool:
    """Pool of servers for requests of many threads."""

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        connect: Callable[[str], Channel],
        connections: int | None = None,
        note: Callable[[str], None] = _NOTICES.warning,
        patient: bool = True,
    ) -> None:
        """`connect` opens a channel; `connections` to a server, or as many as suit it; `note` takes lines to log.

        If it is not `patient`, a server without an answer raises BadInputError instead of a wait.
        """
        self._name, self._connect, self._connections, self._note = name, connect, connections, note
        self._patient = patient
        self._servers = [_Server(url) for url in urls]
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._free_slots: deque[_Slot] = deque()  # not in use
        self._closed = False
        for _ in range(connections or 1):
            for server in self._servers:
                self._add_slot(server)

    @property
    def facts(self) -> dict[str, Mapping[str, Any]]:
        """Descriptions of the servers that were reached so far, by URL."""
        return {server.url: server.facts for server in self._servers if server.facts is not None}

    def wait_for_server(self) -> None:
        """Wait until one of the servers answers. Raise BadInputError if all that answer refuse this client."""
        with ThreadPoolExecutor(len(self._servers), thread_name_prefix="wait-for-server") as threads:
            while not self.facts:
                slots = self._one_slot_each()
                refusals = [reason for reason in threads.map(self._try_to_connect, slots) if reason]
                if len(refusals) == len(self._servers):
                    raise BadInputError(refusals[0])
                if not self.facts:
                    time.sleep(min(slot.pause_s for slot in slots))

    def call(self, message: Any) -> Any:
        """Return the answer of the first server that gives one, even if others fail meanwhile.

        Raise InvalidRequestError if a server's own code fails on the message.
        """
        return self.call_timed(message)[0]

    def call_timed(self, message: Any) -> tuple[Any, Timing]:
        """Return the answer as `call` does, with the times of the wait for a free server and of its answer."""
        began = time.perf_counter()
        while True:
            with self._slot() as slot:
                asked = time.perf_counter()
                try:
                    answer = self._opened(slot).call(message)
                except (ServerTrouble, BadInputError) as trouble:
                    self._back_off(slot, trouble)
                    continue
                except InvalidRequestError:
                    self._note_recovery(slot)
                    self._hang_up(slot)  # servers close the connection after their own error
                    raise
                self._note_recovery(slot)
                return answer, Timing(asked - began, time.perf_counter() - asked)

    def close(self) -> None:
        """Close the connections that are not in use now, and each other one after its answer."""
        with self._lock:
            self._closed = True
            slots = list(self._free_slots)
        for slot in slots:
            self._hang_up(slot)

    def _try_to_connect(self, slot: _Slot) -> str | None:
        """Return why the server refuses this client, if it does."""
        try:
            self._opened(slot)
            self._note_recovery(slot)
        except (RefusedError, BadInputError) as refusal:
            return self._about(slot, f"refuses this client ({in_one_line(refusal)}); check policy_args")
        except ServerTrouble as trouble:
            self._back_off(slot, trouble)
        return None

    def _one_slot_each(self) -> list[_Slot]:
        with self._lock:
            return list({slot.server.url: slot for slot in reversed(self._free_slots)}.values())

    def _add_slot(self, server: _Server) -> None:
        server.slots += 1
        self._free_slots.append(_Slot(server))

    @contextlib.contextmanager
    def _slot(self) -> Iterator[_Slot]:
        """Hold a slot; waiting requests get theirs in order of arrival."""
        waiter = _Waiter()
        with self._lock:
            self._waiters.append(waiter)
            pause_s = self._assign()
        while not waiter.ready.wait(pause_s):
            with self._lock:
                pause_s = self._assign()
        assert waiter.slot is not None
        try:
            yield waiter.slot
        finally:
            with self._lock:
                self._free_slots.append(waiter.slot)
                self._assign()
            if self._closed:
                self._hang_up(waiter.slot)

    def _assign(self) -> float | None:
        """Assign the slots that may be used to waiting requests; return the seconds until the next one may be used."""
        now = time.monotonic()
        for slot in [slot for slot in self._free_slots if slot.retry_at <= now]:
            if not self._waiters:
                return None
            self._free_slots.remove(slot)
            waiter = self._waiters.popleft()
            waiter.slot = slot
            waiter.ready.set()
        return min((slot.retry_at - now for slot in self._free_slots), default=None)

    def _opened(self, slot: _Slot) -> Channel:
        if slot.channel is None:
            slot.channel = self._connect(slot.server.url)
            self._note_facts(slot.server, slot.channel)
        return slot.channel

    def _note_facts(self, server: _Server, channel: Channel) -> None:
        with self._lock:
            before, server.facts = server.facts, channel.facts
            while self._connections is None and server.slots < channel.max_requests:
                self._add_slot(server)
        if before is not None and before != channel.facts:
            self._note(f"{self._name}: {server.url} is not what it was: {channel.facts}, before {before}")

    def _back_off(self, slot: _Slot, trouble: Exception) -> None:
        """Pause before the slot's next use. Raise BadInputError if nobody is to wait for the server."""
        self._hang_up(slot)
        if not self._patient:
            raise BadInputError(self._about(slot, f"does not answer ({in_one_line(trouble)})")) from trouble
        slot.retry_at, slot.pause_s = time.monotonic() + slot.pause_s, min(2 * slot.pause_s, _LONGEST_PAUSE_S)
        self._log(slot, slot.server.outage.begin(trouble))

    def _note_recovery(self, slot: _Slot) -> None:
        slot.pause_s = _FIRST_PAUSE_S
        self._log(slot, slot.server.outage.end())

    def _log(self, slot: _Slot, text: str | None) -> None:
        if text is not None:
            self._note(self._about(slot, text))

    def _about(self, slot: _Slot, text: str) -> str:
        return f"{self._name}: {slot.server.url} {text}"

    def _hang_up(self, slot: _Slot) -> None:
        channel, slot.channel = slot.channel, None
        if channel is not None:
            channel.close()
