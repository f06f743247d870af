"""The websocket server: a thread for each client, and one dynamic batch for all of them."""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import time
import traceback
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from wpray.errors import BadInputError, InvalidRequestError, wrapping_errors
from wpray.policies.remote import arrays
from wpray.policies.request_queue import PolicyError
from wpray.serve.session import ClientSession, SharedPolicy
from wpray.system.threads import WatchedThread

_LOG = logging.getLogger(__name__)
_LARGEST_REQUEST = 64 << 20
_CHECK_S = 0.5
_HEALTH = "/healthz"
_REASON = "Internal server error. Traceback included in previous frame."


class PolicyService:
    """Listening server that accepts clients until `close`."""

    def __init__(self, service: SharedPolicy, host: str, port: int, token: str | None) -> None:
        """Listen on `host`; clients need the `token`, if there is one. Raises BadInputError if the port is not free."""
        self._service, self._token = service, token
        try:
            self._server: Server = serve(
                self._converse,
                host,
                port,
                compression=None,
                max_size=_LARGEST_REQUEST,
                ping_interval=None,
                process_request=self._admit,
            )
        except (OSError, OverflowError) as error:
            raise BadInputError(f"--host, --port: cannot listen on {host}:{port} ({error}); choose another") from error
        self._metadata = arrays.pack(service.metadata())
        self._thread = WatchedThread("serve", self._server.serve_forever)

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self._server.socket.getsockname()[1])

    def run(self) -> None:
        """Serve until interrupted. Raises ThreadDiedError if no client can be answered any more."""
        while True:
            time.sleep(_CHECK_S)
            self._thread.check()
            self._service.answering.check()

    def close(self) -> None:
        """Accept no more clients."""
        self._server.shutdown()
        self._thread.join()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer requests that are not the protocol's: of the health, or without the token. None: admit the client."""
        if request.path == _HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if self._token and not hmac.compare_digest(given.encode(), f"Api-Key {self._token}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        return None

    def _converse(self, connection: ServerConnection) -> None:
        """Answer a client's messages until it leaves or one fails; then send the error's text and hang up."""
        _keep_alive(connection.socket)
        with contextlib.suppress(ConnectionClosed):
            connection.send(self._metadata)
            session = ClientSession(self._service)
            while True:
                frame = connection.recv()
                with _told(connection):
                    connection.send(arrays.pack(session.answer(_read(frame))))


def _read(frame: bytes | str) -> Any:
    if isinstance(frame, str):
        raise InvalidRequestError("a request must be a binary frame of msgpack, not text")
    return arrays.unpack(frame)


class _FailedError(Exception):
    """Error of a request that is neither its own fault nor the policy's."""


@contextlib.contextmanager
def _told(connection: ServerConnection) -> Iterator[None]:
    """Send the traceback of a request that raised, and close the connection, as openpi's server does."""
    try:
        with wrapping_errors(_FailedError, InvalidRequestError, arrays.MalformedError, PolicyError, ConnectionClosed):
            yield
    except (InvalidRequestError, arrays.MalformedError) as error:
        text = f"{type(error).__name__}: {error}"
    except PolicyError as error:
        _LOG.warning("the policy failed: %s", error)
        text = error.failure.traceback or str(error)
    except _FailedError as error:
        _LOG.error("a request failed", exc_info=error.__cause__)
        text = "".join(traceback.format_exception(error.__cause__))
    else:
        return
    connection.send(text)
    connection.close(CloseCode.INTERNAL_ERROR, _REASON)


def _keep_alive(plain: socket.socket) -> None:
    """Notice within two minutes that a client's machine is gone."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
