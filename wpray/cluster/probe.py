"""Check in seconds that a Ray cluster answers at an address; Ray itself retries for minutes and logs it."""

from __future__ import annotations

import os
import socket
import ssl
import time
from urllib.parse import urlsplit

CONNECT_S = 5.0  # for each of a name's addresses
ANSWER_S = 10.0
# Ray speaks gRPC at all its ports. These are the first bytes of HTTP/2, with empty settings; each side sends them.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return the host and port of `HOST:PORT` or `ray://HOST:PORT`; None for an address of another form."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


def check_answers(host: str, port: int, connect_s: float = CONNECT_S, answer_s: float = ANSWER_S) -> None:
    """Raise ConnectionError, one line, if nothing listens at `host`:`port` or no Ray answers.

    A slow cluster gets `answer_s` seconds for its first byte; nothing more is required.
    """
    try:
        connection = socket.create_connection((host, port), timeout=connect_s)
    except OSError as error:
        raise ConnectionError(f"nobody listens at {host}:{port}: {error.strerror or error}") from error
    with connection:
        connection.settimeout(answer_s)
        began = time.monotonic()
        try:
            answered = _first_byte(connection)
        except OSError as error:
            waited = f" within {time.monotonic() - began:.0f} s" if isinstance(error, TimeoutError) else ""
            raise ConnectionError(f"no Ray answers at {host}:{port}{waited}: {error.strerror or error}") from error
        if not answered:
            raise ConnectionError(f"no Ray answers at {host}:{port}: it closed the connection")


def _first_byte(connection: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return _shakes_hands(connection)
    connection.sendall(_HELLO)
    return bool(connection.recv(1))


def _shakes_hands(connection: socket.socket) -> bool:
    """Return whether the other side speaks TLS; Ray itself checks certificates when it connects."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError:  # an alert is an answer, too: it requires our certificate
        return True
    return True
