"""openpi's websocket protocol: the server describes itself first, then each map of arrays is answered by another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wpray.errors import InvalidRequestError
from wpray.policies.remote import arrays
from wpray.policies.remote.plain import plain
from wpray.policies.remote.trouble import ServerTrouble, closed_on_error
from wpray.policies.remote.websocket import Websocket
from wpray.policies.remote.wire import max_requests_of


class OpenpiChannel:
    """One connection to a server of that protocol."""

    def __init__(
        self, url: str, api_key: str | None, answer_s: float, note: Callable[[str], None] = lambda line: None
    ) -> None:
        """Connect and read the server's description. Raise ServerTrouble. Arguments: as Websocket's."""
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._url = url
        self._socket = Websocket(url, headers, answer_s, note)
        with closed_on_error(self._socket):
            self.facts = self._introduction(self._socket.receive())
        self.max_requests = max_requests_of(self.facts)

    def call(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the map that answers `message`.

        Raise InvalidRequestError with the server's traceback if its code failed, ServerTrouble if there is no answer.
        """
        self._socket.send(arrays.pack(message))
        return self._map(self._socket.receive())

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _introduction(self, frame: bytes | str) -> Mapping[str, Any]:
        if isinstance(frame, str):
            raise ServerTrouble(f"it says in place of its metadata: {_last_line(frame)}")
        facts = plain(self._map(frame))
        assert isinstance(facts, dict)
        return facts

    def _map(self, frame: bytes | str) -> Mapping[str, Any]:
        if isinstance(frame, str):
            raise InvalidRequestError(f"{self._url} failed: {_last_line(frame)}\n{frame}")
        try:
            found = arrays.unpack(frame)
        except arrays.MalformedError as error:
            raise ServerTrouble(f"it answers nonsense: {error}") from error
        if not isinstance(found, dict):
            raise ServerTrouble(f"it answers nonsense: {type(found).__name__} in place of a map")
        return found


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1][:300]
