"""Why a server gives no answer, in the words of one line."""

from __future__ import annotations


class ServerTrouble(ConnectionError):  # noqa: N818
    """A server gives no answer now, but may do so later: the question is asked again."""


class RefusedError(ServerTrouble):
    """A server refuses this client, and will do so again: a wrong key, or another kind of server."""


def in_one_line(error: BaseException) -> str:
    """Return what an error says, or the name of its class, as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
