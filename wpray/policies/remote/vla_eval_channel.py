"""vla-eval's websocket protocol: both ends say hello, then episodes of observations, each answered by one action."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from wpray.errors import InvalidRequestError
from wpray.policies.remote import arrays
from wpray.policies.remote.plain import plain
from wpray.policies.remote.trouble import RefusedError, ServerTrouble, closed_on_error
from wpray.policies.remote.websocket import Websocket

HARNESS_VERSION, PROTOCOL = "0.8.0", 1
_BENCHMARK = "LIBEROBenchmark"


class VlaEvalChannel:
    """One connection. The server keeps the rest of a chunk for the episode that is under way on it."""

    def __init__(
        self, url: str, api_key: str | None, answer_s: float, note: Callable[[str], None] = lambda line: None
    ) -> None:
        """Connect and say hello. Raise ServerTrouble. Arguments: as Websocket's."""
        self._url, self._count = url, 0
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._socket = Websocket(url, headers, answer_s, note)
        with closed_on_error(self._socket):
            hello = {"harness_version": HARNESS_VERSION, "protocol_version": PROTOCOL, "benchmark": _BENCHMARK}
            self._send("hello", hello)
            kind, said = self._receive()
            if kind != "hello":
                raise ServerTrouble(f"it answers hello with {kind}")
            if said.get("protocol_version") != PROTOCOL:
                raise RefusedError(f"it speaks version {said.get('protocol_version')!r:.20} of the protocol, not 1")
            self.facts: Mapping[str, Any] = plain(said)

    def begin(self, task: Mapping[str, Any]) -> None:
        """Begin an episode. Raise ServerTrouble."""
        self._send("episode_start", {"task": task})

    def end(self) -> None:
        """End the episode. Raise ServerTrouble."""
        self._send("episode_end", {})

    def act(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the action that answers an observation. Raise InvalidRequestError for the server's own error."""
        number = self._send("observation", observation)
        kind, said = self._receive()
        if kind == "error":
            raise InvalidRequestError(f"{self._url} failed: {said.get('error')!s:.2000}")
        if kind != "action" or self._answered != number:
            raise ServerTrouble(f"it answers nonsense: {kind} to the message {self._answered!r:.20}, not {number}")
        return said

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, kind: str, payload: Mapping[str, Any]) -> int:
        self._count += 1
        message = {"type": kind, "payload": payload, "seq": self._count, "timestamp": time.time()}
        self._socket.send(arrays.pack_str_keys(message))
        return self._count

    def _receive(self) -> tuple[str, Mapping[str, Any]]:
        frame = self._socket.receive()
        if isinstance(frame, str):
            raise ServerTrouble(f"it answers nonsense: the text {frame[:100]!r}")
        try:
            found = arrays.unpack_str_keys(frame)
        except arrays.MalformedError as error:
            raise ServerTrouble(f"it answers nonsense: {error}") from error
        kind, payload = (found.get("type"), found.get("payload")) if isinstance(found, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(payload, dict):
            raise ServerTrouble("it answers nonsense: a message without type and payload")
        self._answered = found.get("seq")
        return kind, payload
