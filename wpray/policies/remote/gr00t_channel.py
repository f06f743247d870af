"""GR00T's protocol: named endpoints over a ZeroMQ socket of requests and replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from wpray.errors import InvalidRequestError
from wpray.policies.remote import arrays
from wpray.policies.remote.plain import plain
from wpray.policies.remote.trouble import ServerTrouble, closed_on_error, in_one_line

_REMIND_S = 30.0  # a line is logged after each such wait


class Gr00tChannel:
    """One socket. ZeroMQ connects in the background, so only an answer shows that a server is there."""

    max_requests = 1

    def __init__(self, url: str, token: str | None, answer_s: float, note: Callable[[str], None]) -> None:
        """Ping the server and request a description of its policy. Raise ServerTrouble."""
        self._url, self._token, self._answer_s, self._note = url, token, answer_s, note
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        with closed_on_error(self):
            self._socket.connect(url)
            self._request("ping", None)
            said = self._request("get_modality_config", None)
            self.facts: Mapping[str, Any] = plain(said) if isinstance(said, dict) else {}

    def call(self, message: Any) -> Any:
        """Return the reply of `get_action`. Raise InvalidRequestError for the server's own error, or ServerTrouble."""
        return self._request("get_action", message)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _request(self, endpoint: str, data: Any) -> Any:
        asked: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            asked["data"] = data
        if self._token:
            asked["api_token"] = self._token
        try:
            self._socket.send(arrays.pack_npy(asked))
            found = arrays.unpack_npy(self._received())
        except arrays.MalformedError as error:
            raise ServerTrouble(f"it answers nonsense: {error}") from error
        except zmq.ZMQError as error:
            raise ServerTrouble(in_one_line(error)) from error
        if isinstance(found, dict) and "error" in found:
            if endpoint != "get_action":
                raise ServerTrouble(f"{endpoint}: {found['error']!s:.300}")
            raise InvalidRequestError(f"{self._url} failed: {found['error']!s:.2000}")
        return found

    def _received(self) -> bytes:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < self._answer_s:
            if self._socket.poll(int(1000 * min(_REMIND_S, self._answer_s - waited)) + 1):
                data: bytes = self._socket.recv()
                return data
            self._note(f"no answer for {time.monotonic() - began:.0f} s; waiting")
        raise ServerTrouble(f"no answer within {self._answer_s:g} s")
