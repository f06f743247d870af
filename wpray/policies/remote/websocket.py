"""Connection to a websocket server: binary frames out and back, and every failure is a ServerTrouble."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from wpray.policies.remote.trouble import RefusedError, ServerTrouble, in_one_line

_OPEN_S = 10.0
_CLOSE_S = 1.0
_SEND_S = 20  # a server that takes no byte for so long is frozen or cut off
_LARGEST_REPLY = 64 << 20
_REMIND_S = 30.0  # a line is logged after each such wait
_UNWELCOME = (401, 403)


class Websocket:
    """One open connection."""

    def __init__(self, url: str, headers: Mapping[str, str], answer_s: float, note: Callable[[str], None]) -> None:
        """Connect. Raise RefusedError or ServerTrouble.

        A server has `answer_s` seconds for each answer; `note` takes a line now and then while it waits.
        """
        self._url, self._answer_s, self._note = url, answer_s, note
        with _as_trouble():
            # Servers compute in the thread that would answer pings, so none are sent; TCP finds a lost machine.
            opening = connect(
                url,
                compression=None,
                max_size=_LARGEST_REPLY,
                additional_headers=dict(headers),
                proxy=None,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                ping_interval=None,
            )
            self._open = contextlib.ExitStack()
            self._connection: ClientConnection = self._open.enter_context(opening)
            _tune(self._connection.socket)

    def send(self, data: bytes) -> None:
        """Send one binary frame. Raise ServerTrouble."""
        with _as_trouble():
            self._connection.send(data)

    def receive(self) -> bytes | str:
        """Return the next frame. Raise ServerTrouble if none comes in time."""
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            if waited >= self._answer_s:
                raise ServerTrouble(f"no answer within {self._answer_s:g} s")
            try:
                with _as_trouble():
                    return _frame(self._connection, min(_REMIND_S, self._answer_s - waited))
            except TimeoutError:
                if self._answer_s - (time.monotonic() - began) > 1:
                    self._note(f"no answer for {time.monotonic() - began:.0f} s; waiting")

    def close(self) -> None:
        """Close the connection; a server that does not react costs a second."""
        self._open.close()


def _frame(connection: ClientConnection, timeout: float) -> bytes | str:
    frame: bytes | str = connection.recv(timeout=timeout)
    return frame


@contextlib.contextmanager
def _as_trouble() -> Iterator[None]:
    """Turn the library's errors into ServerTrouble, except for the end of a wait."""
    try:
        yield
    except InvalidStatus as error:
        code = error.response.status_code
        reason = f"HTTP status {code} {error.response.reason_phrase}"
        raise (RefusedError if code in _UNWELCOME else ServerTrouble)(reason) from error
    except InvalidURI as error:
        raise RefusedError(in_one_line(error)) from error
    except InvalidHandshake as error:
        raise ServerTrouble(f"it is no websocket server ({in_one_line(error)})") from error
    except TimeoutError as error:
        if "handshake" in str(error):
            raise ServerTrouble(in_one_line(error)) from error
        raise
    except (WebSocketException, OSError, EOFError) as error:
        raise ServerTrouble(in_one_line(error)) from error


def _tune(plain: socket.socket) -> None:
    """Send at once, fail where the server takes no bytes, and notice within a minute that its machine is gone."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
