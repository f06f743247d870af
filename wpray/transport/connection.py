"""Requests from env actors to other actors, over one authenticated socket for each pair.

An actor call would carry an observation through the object store, which takes 5 ms on busy cores; a socket carries its
300 kB in one. Both ends prove that they hold a random key of the run before anything is unpickled.

A connection that breaks is made again, to the same server or to another, and the current request is sent again. That
is harmless because servers are stateless. A retried request is answered alone, which separates a request that kills
its server from those that were answered with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from wpray.errors import ThreadDiedError
from wpray.policies.request_queue import PolicyError, tried
from wpray.system.threads import WatchedThread

_RETRY_S = 0.5
_PATIENCE_S = 1.0
_BLOCKED_S = 5  # a peer is frozen if it takes or sends no byte of a message for so long
_LOST = (EOFError, OSError, AuthenticationError)
_BACKLOG = 512
# After a restart, every env actor of a run may connect at once while somebody scans the port.
_MOST_STRANGERS = 768
_AUTHENTICATE_S = 10.0  # longest time from a connection to the proof of the key; env actors take milliseconds
_CHECK_S = 0.5  # between two checks for connections that are late
_LISTENER_BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)  # no later accept will succeed

# Returns the reply to a request. Calls the first function, if there is one, just before it answers the request alone;
# the second one returns True once nobody waits for the reply.
AnswerFunction = Callable[[Any, Callable[[], None] | None, Callable[[], bool]], Any]


class FatalRequestError(RuntimeError):
    """Error for a request that ended the process which answered it alone."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server, and what helps to select one."""

    host: str
    port: int
    replica: int  # number of the actor
    node: str  # Ray's id of its node
    clients: int  # open connections
    incarnation: str  # name of the process; an actor gets another when it is restarted


@dataclass(frozen=True, slots=True)
class _Message:
    """Message of an env actor."""

    request: Any
    is_retry: bool  # True if a server died before it had answered


@dataclass(frozen=True, slots=True)
class _Started:
    """Message before the reply to a retried request: nothing else is being computed now."""


class Server:
    """Server on a TCP port of one host address, with a thread for each connection."""

    def __init__(self, answer: AnswerFunction, host: str, key: bytes) -> None:
        self._answer_with, self._key = answer, key
        self._listener = socket.create_server((host, 0), backlog=_BACKLOG)
        self._listener.settimeout(_CHECK_S)
        self._strangers = PendingConnections()
        self._clients, self._closed = 0, False
        self._counting = threading.Lock()
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self.incarnation = secrets.token_hex(8)
        self._thread = WatchedThread("accept", self._accept)

    @property
    def clients(self) -> int:
        """Number of open connections."""
        return self._clients

    def check(self) -> None:
        """Raise ThreadDiedError if nobody can connect any more."""
        self._thread.check()

    def close(self) -> None:
        """Accept no more connections."""
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            self._strangers.hang_up_on_the_late()
            try:
                accepted, _ = self._listener.accept()
                self._welcome(Connection(accepted.detach()))
            except TimeoutError:
                continue
            except (OSError, RuntimeError) as error:  # RuntimeError: the machine gives no more threads
                if self._closed:
                    return
                if isinstance(error, OSError) and error.errno in _LISTENER_BROKEN:
                    raise
                time.sleep(_RETRY_S)  # a peer hung up meanwhile, or there are too many open files

    def _welcome(self, connection: Connection) -> None:
        self._strangers.add(connection)
        try:
            WatchedThread("connection", partial(self._serve, connection))
        except RuntimeError:
            self._strangers.remove(connection)
            connection.close()
            raise

    def _serve(self, connection: Connection) -> None:
        """Answer one peer until it leaves. A peer that never answers the challenge delays nobody else."""
        with connection:
            try:
                with _handshake():
                    deliver_challenge(connection, self._key)
                    answer_challenge(connection, self._key)
            except _LOST:
                return
            finally:
                self._strangers.remove(connection)
            self._count(1)
            try:
                self._converse(connection)
            except (*_LOST, ThreadDiedError):  # `health` reports a dead thread to the driver
                return
            finally:
                self._count(-1)

    def _converse(self, connection: Connection) -> None:
        _tune(connection)
        gone = _watch_for_its_end(connection)
        while True:
            reply = tried(lambda: self._answer(connection.recv(), connection, gone), *_LOST, ThreadDiedError)
            # A reply that cannot be pickled is the server's error; no byte of it has been sent.
            failure = tried(partial(connection.send, reply), *_LOST)
            if failure is not None:
                connection.send(failure)

    def _answer(self, message: _Message, connection: Connection, gone: Callable[[], bool]) -> Any:
        def started() -> None:
            with contextlib.suppress(OSError):  # the env actor has left
                connection.send(_Started())

        try:
            return self._answer_with(message.request, started if message.is_retry else None, gone)
        except PolicyError as error:
            return error

    def _count(self, change: int) -> None:
        with self._counting:
            self._clients += change


class PendingConnections:
    """Connections that have not authenticated yet: few, and none for long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[Connection, float] = {}  # oldest first

    def add(self, connection: Connection) -> None:
        """Note a new connection; hang up on the oldest of too many, because env actors authenticate at once."""
        with self._lock:
            self._since[connection] = self._clock()
            for oldest in list(self._since)[: max(0, len(self._since) - _MOST_STRANGERS)]:
                self._hang_up(oldest)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has authenticated, or that its thread is about to close."""
        with self._lock:
            self._since.pop(connection, None)

    def hang_up_on_the_late(self) -> None:
        """End the connections that have not authenticated in time; their threads then end, too."""
        with self._lock:
            limit = self._clock() - _AUTHENTICATE_S
            for connection in [late for late, since in self._since.items() if since <= limit]:
                self._hang_up(connection)

    def _hang_up(self, connection: Connection) -> None:
        """Wake the thread that reads; it closes the connection, which cannot happen while the lock is held."""
        del self._since[connection]
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)


class Client:
    """Connection to one of several servers, made again whenever it breaks. Waits for a restart without a limit."""

    def __init__(self, select: Callable[[], Address], key: bytes, alive: Callable[[], None]) -> None:
        """Keep `select`, which returns the address of a live server or raises OSError.

        `alive` is called while waiting for one.
        """
        self.replica: int | None = None  # number of the server at the other end
        self.incarnation: str | None = None  # of that server
        self._select, self._key, self._alive = select, key, alive
        self._connection: Connection | None = None

    @property
    def connected_to(self) -> str | None:
        """Incarnation of the server at the other end; None without a connection."""
        return None if self._connection is None else self.incarnation

    def disconnect(self) -> None:
        """Close the connection; the next request selects a server again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, request: Any) -> Any:
        """Return the reply, retrying while servers die. Raises FatalRequestError if the request kills one alone."""
        exchange = _Exchange(_Message(request, is_retry=False))
        while True:
            try:
                return exchange.run(self._connected(), self._alive)
            except _LOST:
                self.disconnect()
                self._alive()
                if exchange.fatal:
                    raise FatalRequestError("a server died while it answered this request alone") from None
                time.sleep(_RETRY_S)

    def _connected(self) -> Connection:
        if self._connection is None:
            address = self._select()
            connection = _connect(address)
            try:
                _never_block(connection)
                with _handshake():
                    answer_challenge(connection, self._key)
                    deliver_challenge(connection, self._key)
                _tune(connection)
            except _LOST:
                connection.close()
                raise
            self._connection, self.replica, self.incarnation = connection, address.replica, address.incarnation
        return self._connection


class _Exchange:
    """Request until its reply, over as many connections as it takes."""

    def __init__(self, message: _Message) -> None:
        self._message = message
        self.fatal = False  # True while a broken connection would be the request's fault

    def run(self, connection: Connection, alive: Callable[[], None]) -> Any:
        """Return the reply. Raises one of _LOST if the connection breaks; `alive` is called while waiting."""
        self.fatal = False
        connection.send(self._message)
        self._message = _Message(self._message.request, is_retry=True)
        while True:
            while not connection.poll(_PATIENCE_S):
                alive()
            reply = connection.recv()
            if not isinstance(reply, _Started):
                return reply
            self.fatal = True


def _connect(address: Address) -> Connection:
    """Return a connection. Raises OSError within seconds where nothing answers: the machine may be gone."""
    with socket.create_connection((address.host, address.port), timeout=_BLOCKED_S) as connected:
        connected.settimeout(None)
        return Connection(connected.detach())


@contextlib.contextmanager
def _handshake() -> Iterator[None]:
    """Raise AuthenticationError if the other end is something else; the library asserts that in part."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise AuthenticationError(f"no connection of a run: {error}") from error


def _watch_for_its_end(connection: Connection) -> Callable[[], bool]:
    """Return a function that tells, in a microsecond, whether the other end has hung up or is lost."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return lambda: bool(poll.poll(0))


def _never_block(connection: Connection) -> None:
    """Make reading and writing fail with OSError if the other end is frozen."""
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            copy.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _BLOCKED_S, 0))


def _tune(connection: Connection) -> None:
    """Send at once, and notice within half a minute that the other end's machine is gone."""
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
