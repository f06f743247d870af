"""Pool of servers of one policy: each request goes to the first free one, and is repeated until it is answered.

A server that hangs, closes the connection, answers nonsense, restarts or is not there yet costs time, never an
episode: its connection rests for a moment and is made again, while the question goes to whichever is free next.
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
_REMIND_S = 60.0  # a line is logged so often about a server that stays away


class Channel(Protocol):
    """One open connection to a server, which takes one question at a time."""

    facts: Mapping[str, Any]  # what the server said of itself
    places: int  # questions that the server likes to have at once, over as many connections

    def ask(self, question: Any) -> Any:
        """Return the server's answer. Raise ServerTrouble if there is none, InvalidRequestError for its own error."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(slots=True)
class Absence:
    """Lines for the log about a server's absence: at its beginning, at its end, and now and then between them."""

    since: float | None = None
    reminded: float = 0.0

    def begins(self, trouble: Exception) -> str | None:
        """Return a line about trouble, unless one was said a moment ago."""
        now = time.monotonic()
        if self.since is None:
            self.since = self.reminded = now
            return f"gives no answer ({in_one_line(trouble)}); it is asked again until it does"
        if now - self.reminded < _REMIND_S:
            return None
        self.reminded = now
        return f"gives no answer for {now - self.since:.0f} s ({in_one_line(trouble)}); waiting"

    def ends(self) -> str | None:
        """Return a line about the end, if there was trouble."""
        if self.since is None:
            return None
        away_s, self.since = time.monotonic() - self.since, None
        return f"answers again, after {away_s:.1f} s"


@dataclass(slots=True)
class _Server:
    """State of one server."""

    url: str
    facts: Mapping[str, Any] | None = None  # None until it has answered
    lines: int = 0
    absence: Absence = field(default_factory=Absence)


@dataclass(slots=True, eq=False)
class _Line:
    """A place at a server: one connection, made when it is needed."""

    server: _Server
    channel: Channel | None = None
    rests_until: float = 0.0
    pause_s: float = field(default_factory=lambda: _FIRST_PAUSE_S)


@dataclass(slots=True, eq=False)
class _Asker:
    """A question that waits for a line."""

    line: _Line | None = None
    served: threading.Event = field(default_factory=threading.Event)


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
        """`connect` opens a channel; `connections` to a server, or as many as it likes; `note` takes lines to log.

        If it is not `patient`, a server without an answer raises BadInputError in place of a wait.
        """
        self._name, self._connect, self._connections, self._note = name, connect, connections, note
        self._patient = patient
        self._servers = [_Server(url) for url in urls]
        self._lock = threading.Lock()
        self._askers: deque[_Asker] = deque()
        self._lines: deque[_Line] = deque()  # that nobody uses now
        self._closed = False
        for _ in range(connections or 1):
            for server in self._servers:
                self._add_line(server)

    @property
    def facts(self) -> dict[str, Mapping[str, Any]]:
        """Descriptions of the servers that were reached so far, by URL."""
        return {server.url: server.facts for server in self._servers if server.facts is not None}

    def meet(self) -> None:
        """Wait until one of the servers answers. Raise BadInputError if all that answer refuse this client."""
        with ThreadPoolExecutor(len(self._servers), thread_name_prefix="meet") as threads:
            while not self.facts:
                lines = self._one_line_each()
                refusals = [reason for reason in threads.map(self._try_to_meet, lines) if reason]
                if len(refusals) == len(self._servers):
                    raise BadInputError(refusals[0])
                if not self.facts:
                    time.sleep(min(line.pause_s for line in lines))

    def ask(self, question: Any) -> Any:
        """Return the answer of the first server that gives one, whatever becomes of the others meanwhile.

        Raise InvalidRequestError if a server's own code fails on the question.
        """
        return self.ask_timed(question)[0]

    def ask_timed(self, question: Any) -> tuple[Any, Timing]:
        """Return what `ask` does, with the time of the server's answer and of what went before it."""
        began = time.perf_counter()
        while True:
            with self._line() as line:
                asked = time.perf_counter()
                try:
                    answer = self._opened(line).ask(question)
                except (ServerTrouble, BadInputError) as trouble:
                    self._rest(line, trouble)
                    continue
                except InvalidRequestError:
                    self._is_back(line)
                    self._hang_up(line)  # servers close the connection after their own error
                    raise
                self._is_back(line)
                return answer, Timing(asked - began, time.perf_counter() - asked)

    def close(self) -> None:
        """Close the connections that are not in use now, and each other one after its answer."""
        with self._lock:
            self._closed = True
            lines = list(self._lines)
        for line in lines:
            self._hang_up(line)

    def _try_to_meet(self, line: _Line) -> str | None:
        """Return why the server refuses this client, if it does."""
        try:
            self._opened(line)
            self._is_back(line)
        except (RefusedError, BadInputError) as refusal:
            return self._about(line, f"refuses this client ({in_one_line(refusal)}); check policy_args")
        except ServerTrouble as trouble:
            self._rest(line, trouble)
        return None

    def _one_line_each(self) -> list[_Line]:
        with self._lock:
            return list({line.server.url: line for line in reversed(self._lines)}.values())

    def _add_line(self, server: _Server) -> None:
        server.lines += 1
        self._lines.append(_Line(server))

    @contextlib.contextmanager
    def _line(self) -> Iterator[_Line]:
        """Hold a line; those who wait get theirs in the order in which they came."""
        asker = _Asker()
        with self._lock:
            self._askers.append(asker)
            pause_s = self._serve()
        while not asker.served.wait(pause_s):
            with self._lock:
                pause_s = self._serve()
        assert asker.line is not None
        try:
            yield asker.line
        finally:
            with self._lock:
                self._lines.append(asker.line)
                self._serve()
            if self._closed:
                self._hang_up(asker.line)

    def _serve(self) -> float | None:
        """Give lines that do not rest to those who wait; return in how many seconds the next one is rested."""
        now = time.monotonic()
        for line in [line for line in self._lines if line.rests_until <= now]:
            if not self._askers:
                return None
            self._lines.remove(line)
            asker = self._askers.popleft()
            asker.line = line
            asker.served.set()
        return min((line.rests_until - now for line in self._lines), default=None)

    def _opened(self, line: _Line) -> Channel:
        if line.channel is None:
            line.channel = self._connect(line.server.url)
            self._note_facts(line.server, line.channel)
        return line.channel

    def _note_facts(self, server: _Server, channel: Channel) -> None:
        with self._lock:
            before, server.facts = server.facts, channel.facts
            while self._connections is None and server.lines < channel.places:
                self._add_line(server)
        if before is not None and before != channel.facts:
            self._note(f"{self._name}: {server.url} is not what it was: {channel.facts}, before {before}")

    def _rest(self, line: _Line, trouble: Exception) -> None:
        """Leave the server in peace for a moment. Raise BadInputError if nobody is to wait for it."""
        self._hang_up(line)
        if not self._patient:
            raise BadInputError(self._about(line, f"gives no answer ({in_one_line(trouble)})")) from trouble
        line.rests_until, line.pause_s = time.monotonic() + line.pause_s, min(2 * line.pause_s, _LONGEST_PAUSE_S)
        self._say(line, line.server.absence.begins(trouble))

    def _is_back(self, line: _Line) -> None:
        line.pause_s = _FIRST_PAUSE_S
        self._say(line, line.server.absence.ends())

    def _say(self, line: _Line, text: str | None) -> None:
        if text is not None:
            self._note(self._about(line, text))

    def _about(self, line: _Line, text: str) -> str:
        return f"{self._name}: {line.server.url} {text}"

    def _hang_up(self, line: _Line) -> None:
        channel, line.channel = line.channel, None
        if channel is not None:
            channel.close()
