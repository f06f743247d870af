"""Requests from env actors to a render actor: a pose of some kB goes there, and the pictures come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wpray.policies.request_queue import PolicyError
from wpray.transport.connection import Client, FatalRequestError, Server
from wpray.transport.drawing import Drawing, DrawingThread, ModelWanted
from wpray.types import DrawRequest, Failure, ImageArray

RENDERER_DIED = "RendererDiedError"  # kind of the DrawError for a request that kills the render actor


class DrawError(RuntimeError):
    """Exception of the drawer in a request that was drawn alone. It holds text only, as a PolicyError does."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.kind}: {self.failure.message}"


class DrawServer(Server):
    """Server of a drawing thread."""

    def __init__(self, drawing: DrawingThread, host: str, key: bytes) -> None:
        super().__init__(drawing.draw, host, key)


class SocketDrawClient(Client):
    """DrawClient over a connection. It waits for a render actor that is restarting, without a limit."""

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        """Return the pictures by role. Raises DrawError if the drawer failed on this request."""
        reply = self._reply(Drawing(request))
        while isinstance(reply, ModelWanted):
            reply = self._reply(Drawing(request, model_data()))
        pictures: dict[str, ImageArray] = reply
        return pictures

    def _reply(self, drawing: Drawing) -> Any:
        try:
            reply = self._call(drawing)
        except FatalRequestError:
            message = "a render actor died while it drew this request alone"
            raise DrawError(Failure("environment", RENDERER_DIED, message)) from None
        if isinstance(reply, PolicyError):
            raise DrawError(replace(reply.failure, origin="environment"))
        return reply
