"""JSON over HTTP: each message is a POST to one path, and the reply is its answer."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from wpray.policies.remote import arrays
from wpray.policies.remote.trouble import RefusedError, ServerTrouble, in_one_line

_UNWELCOME = (401, 403, 404, 405)
_LARGEST_REPLY = 64 << 20


class HttpChannel:
    """One connection that is kept open between requests."""

    max_requests = 1

    def __init__(
        self,
        url: str,
        path: str,
        api_key: str | None,
        answer_s: float,
        check: Callable[[Any], Any] = lambda found: found,
    ) -> None:
        """Connect. Raise ServerTrouble. `check` turns a reply into an answer, or raises."""
        parts = urlsplit(url)
        self._path, self._check = parts.path.rstrip("/") + path, check
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=answer_s)
        self.facts: Mapping[str, Any] = {}
        try:
            self._connection.connect()
        except (OSError, ssl.SSLError) as error:
            raise ServerTrouble(in_one_line(error)) from error
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, message: Any) -> Any:
        """Return the reply to a message. Raise ServerTrouble, or what `check` raises."""
        try:
            self._connection.request("POST", self._path, arrays.pack_json(message), self._headers)
            response = self._connection.getresponse()
            body = response.read(_LARGEST_REPLY)
        except (OSError, http.client.HTTPException) as error:
            raise ServerTrouble(in_one_line(error)) from error
        if response.status != http.HTTPStatus.OK:
            text = " ".join(body.decode("utf-8", "replace").split())[:200]
            trouble = RefusedError if response.status in _UNWELCOME else ServerTrouble
            raise trouble(f"HTTP status {response.status} {response.reason}: {text}")
        try:
            return self._check(arrays.unpack_json(body))
        except arrays.MalformedError as error:
            raise ServerTrouble(f"it answers nonsense: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
