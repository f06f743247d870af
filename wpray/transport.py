"""Requests from env actors to policy actors: one authenticated connection each, raw and direct.

An actor call would carry an observation through the object store (5 ms on busy cores); a socket carries its 300 kB in
one. Both ends prove that they know the run's random key before anything is unpickled. A connection that breaks is
made again, to the same replica once it is back or to another, and the request in flight is asked again: policies are
stateless, so asking twice is harmless.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from wpray.policy.base import PolicySpec
from wpray.policy.batching import Batcher, PolicyError
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

_RETRY_S = 0.5
_PATIENCE_S = 1.0
_LOST = (EOFError, OSError, AuthenticationError)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a policy replica listens, and what helps to choose one."""

    host: str
    port: int
    replica: int
    node: str  # Ray's id of its node
    clients: int  # connections that it has


class PolicyServer:
    """Serves a batcher on a TCP port of one host address, a thread for each connection."""

    def __init__(self, batcher: Batcher, host: str, key: bytes) -> None:
        self._batcher, self._key = batcher, key
        self._listener = Listener((host, 0), backlog=512)
        self._clients = 0
        self._counting = threading.Lock()
        self.host, self.port = host, int(self._listener.address[1])
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    @property
    def clients(self) -> int:
        """Connections open now."""
        return self._clients

    def close(self) -> None:
        """Accepts no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Answers one peer until it leaves. A stranger who never answers the challenge holds up nobody else."""
        with connection:
            try:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
            except _LOST:
                return
            self._count(1)
            try:
                self._converse(connection)
            except _LOST:
                return
            finally:
                self._count(-1)

    def _converse(self, connection: Connection) -> None:
        _tune(connection)
        while True:
            connection.send(self._answer(connection.recv()))

    def _answer(self, request: PlanRequest | SegmentRequest) -> PlanReply | SegmentReply | PolicyError:
        try:
            return self._batcher.plan(request) if isinstance(request, PlanRequest) else self._batcher.act(request)
        except PolicyError as error:
            return error

    def _count(self, change: int) -> None:
        with self._counting:
            self._clients += change


class RemotePolicy:
    """A PolicyClient over a connection; waits for the policy as long as it takes to come back."""

    def __init__(self, spec: PolicySpec, find: Callable[[], Address], key: bytes, alive: Callable[[], None]) -> None:
        """`find` gives the address of a live replica, or raises OSError; `alive` is called while waiting for one."""
        self.spec = spec
        self.replica: int | None = None  # the one connected to
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

    def disconnect(self) -> None:
        """The next request chooses a replica anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, request: PlanRequest | SegmentRequest) -> Any:
        while True:
            try:
                reply = self._exchange(request)
            except _LOST:
                self.disconnect()
                self._alive()
                time.sleep(_RETRY_S)
                continue
            if isinstance(reply, PolicyError):
                raise reply
            return reply

    def _exchange(self, request: PlanRequest | SegmentRequest) -> Any:
        connection = self._connected()
        connection.send(request)
        while not connection.poll(_PATIENCE_S):
            self._alive()
        return connection.recv()

    def _connected(self) -> Connection:
        if self._connection is None:
            address = self._find()
            self._connection = Client((address.host, address.port), authkey=self._key)
            self.replica = address.replica
            _tune(self._connection)
        return self._connection


def _tune(connection: Connection) -> None:
    """Sends at once, and notices within half a minute that the other end's machine is gone."""
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
