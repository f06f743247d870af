"""Requests from env actors to policy actors: one authenticated connection each, raw and direct.

An actor call would carry an observation through the object store (several milliseconds on busy cores); a socket
carries its 300 kB in a fraction of one. Both ends prove that they know the run's random key before anything is
unpickled. A connection that breaks is made again, to the same replica once it is back or to another, and the request
in flight is asked again: policies are stateless, so asking twice is harmless.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from wpray.policy.base import PolicySpec
from wpray.policy.batching import Batcher, PolicyError
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

Address = tuple[str, int]
_RETRY_S = 0.5
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A policy's exception on the wire: text only, so that the receiver needs none of the sender's classes."""

    message: str


class PolicyServer:
    """Serves a batcher on a TCP port of one address, a thread for each connection."""

    def __init__(self, batcher: Batcher, host: str, key: bytes) -> None:
        self._batcher = batcher
        self._listener = Listener((host, 0), backlog=512, authkey=key)
        self.address: Address = (host, self._listener.address[1])
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):
                continue  # a client that went away or did not know the key
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        _send_at_once(connection)
        with connection:
            while True:
                try:
                    request = connection.recv()
                    connection.send(self._answer(request))
                except (EOFError, OSError):
                    return

    def _answer(self, request: PlanRequest | SegmentRequest) -> PlanReply | SegmentReply | Failure:
        try:
            return self._batcher.plan(request) if isinstance(request, PlanRequest) else self._batcher.act(request)
        except PolicyError as error:
            return Failure(str(error))


class RemotePolicy:
    """A PolicyClient over a connection; waits for the policy as long as it takes to come back."""

    def __init__(self, spec: PolicySpec, find: Callable[[], Address], key: bytes, alive: Callable[[], None]) -> None:
        """`find` gives the address of a live replica, or raises OSError; `alive` is called while waiting for one."""
        self.spec = spec
        self._find, self._key, self._alive = find, key, alive
        self._connection: Connection | None = None

    def plan(self, request: PlanRequest) -> PlanReply:
        """Asks for a plan. Raises PolicyError if the policy failed on this request."""
        reply: PlanReply = self._ask(request)
        return reply

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Asks for a segment. Raises PolicyError if the policy failed on this request."""
        reply: SegmentReply = self._ask(request)
        return reply

    def _ask(self, request: PlanRequest | SegmentRequest) -> Any:
        while True:
            try:
                connection = self._connected()
                connection.send(request)
                while not connection.poll(_PATIENCE_S):
                    self._alive()
                reply = connection.recv()
            except (EOFError, OSError):
                self._drop()
                self._alive()
                time.sleep(_RETRY_S)
                continue
            if isinstance(reply, Failure):
                raise PolicyError(reply.message)
            return reply

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Client(self._find(), authkey=self._key)
            _send_at_once(self._connection)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _send_at_once(connection: Connection) -> None:
    """A message is a short header and a body: without this the body's last bytes wait for an acknowledgement."""
    with socket.socket(fileno=socket.dup(connection.fileno())) as copy:
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
