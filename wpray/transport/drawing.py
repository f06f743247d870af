"""One thread that draws what many connections request: a GL context belongs to the thread that made it.

A turn draws all requests that wait. A request whose model the drawer does not know is answered by asking for it; other
requests of that model wait until it has come, so that it travels once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from wpray.benchmarks.base import Drawer
from wpray.errors import BadInputError, ThreadDiedError, wrapping_errors
from wpray.policies.request_queue import PolicyError, tried
from wpray.system.threads import WatchedThread
from wpray.types import DrawRequest, ImageArray

Pictures = dict[str, ImageArray]  # by role
_MODEL_S = 10.0  # longest wait for a model that was asked for; then another client is asked
_MOST_FAILURES = 3  # failed requests in a row after which the drawer is taken to be broken


@dataclass(frozen=True, slots=True)
class Drawing:
    """Request of a client, with the model's bytes if the drawer has asked for them."""

    request: DrawRequest
    model_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """Reply to a request whose model the drawer does not know: send it again with the model."""


@dataclass(slots=True, eq=False)  # arrays do not compare
class _Pending:
    drawing: Drawing
    announce: Callable[[], None] | None  # called before it is drawn, in a turn of its own
    gone: Callable[[], bool]
    future: Future[Pictures | ModelWanted] = field(default_factory=Future)

    @property
    def model(self) -> str:
        """Digest of its model."""
        return self.drawing.request.model

    @property
    def brings_model(self) -> bool:
        """True if it holds the model, too."""
        return self.drawing.model_data is not None

    @property
    def alone(self) -> bool:
        """True if it may kill the process, or brings a model: it is a turn of its own."""
        return self.announce is not None or self.brings_model


class DrawingThread:
    """Thread that makes a drawer and draws for many other threads."""

    def __init__(self, make: Callable[[], Drawer]) -> None:
        self._make = make
        self._made: Future[Drawer] = Future()
        self._changed = threading.Condition()
        self._closed = False
        self._waiting: list[_Pending] = []  # in order of arrival
        self._without_model: list[_Pending] = []  # their model was asked for, and has not come
        self._asked: dict[str, float] = {}  # by model: monotonic time until which it is waited for
        self._failures = 0  # failed requests since the last that was drawn
        self._turn: list[_Pending] = []  # is being drawn
        self._drawing_since: float | None = None
        self._preparing: dict[object, float] = {}  # start of each model's preparation, in order (monotonic)
        self.busy_s = 0.0  # total seconds of drawing
        self._thread = WatchedThread("drawing", self._work, self._fail_all)

    @property
    def busy_since(self) -> float | None:
        """Start of the turn, or of a model's preparation if one began earlier (monotonic), for a watchdog.

        None if the drawer's code is not at work.
        """
        with self._changed:
            starts = list(self._preparing.values())[:1]
        drawing = self._drawing_since
        return min(starts if drawing is None else [*starts, drawing], default=None)

    def wait_for_the_drawer(self) -> None:
        """Return once the drawer is made. Raises what making it raised."""
        self._made.result()

    def check(self) -> None:
        """Raise ThreadDiedError if nothing is drawn any more."""
        self._thread.check()

    def draw(
        self, drawing: Drawing, announce: Callable[[], None] | None, gone: Callable[[], bool]
    ) -> Pictures | ModelWanted:
        """Return the pictures; block until they are drawn.

        Raise PolicyError (of the drawer, for this request), ConnectionResetError if `gone` reports at its turn that the
        client has left, and ThreadDiedError once nothing is drawn any more. With `announce`, which is called just
        before, the request is drawn alone: it may kill the process. A model that it brings is prepared by the calling
        thread, while others are drawn for.
        """
        if drawing.model_data is not None and announce is None:
            self._prepare(drawing.request.model, drawing.model_data)
        pending = _Pending(drawing, announce, gone)
        with self._changed:
            if self._closed:
                raise ThreadDiedError("the drawing thread has ended")
            self._waiting.append(pending)
            self._changed.notify_all()
        return pending.future.result()

    def _prepare(self, model: str, data: bytes) -> None:
        mark = object()
        with self._changed:
            self._preparing[mark] = time.monotonic()
        tried(lambda: self._made.result().prepare(model, data))  # what fails shows at its turn
        with self._changed:
            del self._preparing[mark]

    def close(self) -> None:
        """Stop the thread after the current turn; waiting requests fail with ThreadDiedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._fail_all(ThreadDiedError("the drawing thread is closed"))

    def _fail_all(self, error: ThreadDiedError) -> None:
        with self._changed:
            self._closed = True
            left = [*self._turn, *self._waiting, *self._without_model]
        for pending in left:
            if not pending.future.done():
                pending.future.set_exception(ThreadDiedError(*error.args))

    def _work(self) -> None:
        try:
            with wrapping_errors(_not_made, BadInputError, caught=BaseException):
                drawer = self._make()
        except (BadInputError, RuntimeError) as error:
            self._made.set_exception(error)
            return
        self._made.set_result(drawer)
        while self._next():
            self._drawing_since = began = time.monotonic()
            self._answer(drawer)
            self.busy_s += time.monotonic() - began
            self._drawing_since = None
        drawer.close()

    def _next(self) -> bool:
        """Wait until there is something to draw, and make it the turn. Return False when closed."""
        with self._changed:
            self._turn = []
            while not self._closed:
                for model in [model for model, until in self._asked.items() if time.monotonic() >= until]:
                    self._go_on_with(model)
                together = next((n for n, pending in enumerate(self._waiting) if pending.alone), len(self._waiting))
                count = max(1, together)
                self._turn, self._waiting = self._waiting[:count], self._waiting[count:]
                if self._turn:
                    return True
                self._changed.wait(_MODEL_S / 10 if self._without_model else None)
        return False

    def _go_on_with(self, model: str) -> None:
        """Put the requests that wait for a model first in line."""
        self._asked.pop(model, None)
        freed = [pending for pending in self._without_model if pending.model == model]
        self._without_model = [pending for pending in self._without_model if pending.model != model]
        self._waiting = [*freed, *self._waiting]

    def _answer(self, drawer: Drawer) -> None:
        ready = []
        for pending in self._turn:
            if pending.gone():
                pending.future.set_exception(ConnectionResetError("whoever asked has gone"))
            elif pending.brings_model or drawer.knows(pending.model):
                ready.append(pending)
            elif pending.model in self._asked:
                self._without_model.append(pending)
            else:
                self._asked[pending.model] = time.monotonic() + _MODEL_S
                pending.future.set_result(ModelWanted())
        if ready:
            self._draw(drawer, ready)

    def _draw(self, drawer: Drawer, ready: Sequence[_Pending]) -> None:
        """Answer the requests; if one of several fails, each by itself. Raises RuntimeError if all fail for long."""
        found = tried(lambda: _pictures(drawer, ready))
        if ready[0].brings_model:
            with self._changed:
                self._go_on_with(ready[0].model)
        if not isinstance(found, PolicyError):
            self._failures = 0
            for pending, pictures in zip(ready, found, strict=True):
                pending.future.set_result(pictures)
        elif len(ready) > 1:
            for pending in ready:
                self._draw(drawer, [pending])
        else:
            ready[0].future.set_exception(found)
            self._failures += 1
            if self._failures == _MOST_FAILURES:
                raise RuntimeError(f"{_MOST_FAILURES} requests in a row failed, the last one with {found}")


def _pictures(drawer: Drawer, ready: Sequence[_Pending]) -> list[Pictures]:
    """Return the pictures of each request, after the drawer has learned the model that comes with one."""
    for pending in ready:
        if pending.announce is not None:
            pending.announce()
        if pending.drawing.model_data is not None and not drawer.knows(pending.model):
            drawer.learn(pending.model, pending.drawing.model_data)
    pictures = drawer.draw([pending.drawing.request for pending in ready])
    if len(pictures) != len(ready):
        raise ValueError(f"{len(pictures)} answers of the drawer to {len(ready)} requests")
    return pictures


def _not_made(error: BaseException) -> RuntimeError:
    return RuntimeError(f"no drawer could be made: {type(error).__name__}: {error}")
