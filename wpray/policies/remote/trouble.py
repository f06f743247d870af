"""Errors of servers that give no answer, as one line of text."""

from __future__ import annotations


class ServerTrouble(ConnectionError):  # noqa: N818
    """Temporary lack of an answer; the question is repeated."""


class RefusedError(ServerTrouble):
    """Permanent refusal by a server, because of a wrong key or another kind of server."""


def in_one_line(error: BaseException) -> str:
    """Return what an error says, or the name of its class, as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
