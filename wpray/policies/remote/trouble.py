"""Errors of servers that give no answer, as one line of text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol


class ServerTrouble(ConnectionError):  # noqa: N818
    """Temporary lack of an answer; the request is repeated."""


class RefusedError(ServerTrouble):
    """Permanent refusal by a server, because of a wrong key or another kind of server."""


class Closeable(Protocol):
    """Connection, or an object that holds one."""

    def close(self) -> None:
        """Close it."""


@contextmanager
def closed_on_error(connection: Closeable) -> Iterator[None]:
    """Close `connection` if the block raises, because nobody else holds it yet."""
    with ExitStack() as stack:
        stack.callback(connection.close)
        yield
        stack.pop_all()


def in_one_line(error: BaseException) -> str:
    """Return an error's text, or the name of its class, as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
