"""Background upload of finished files from a folder to a store, so that the driver never waits for a network."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wpray.errors import PausedError, RunStoppedError, ThreadDiedError
from wpray.storage.store import Store, StoreError
from wpray.system.threads import WatchedThread

_LOG = logging.getLogger(__name__)
_THREADS = 8  # several, because each upload waits for three replies from S3
MOST_BEHIND = 256  # jobs (episodes) that may wait for the store before the run pauses
PATIENCE_S = 600.0  # longest time in which a store accepts nothing
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0  # between retries
_CLOSE_S = 30.0  # longest wait for uploads in progress

_Act = Callable[[], None]


class Uploader:
    """Uploader that starts jobs in order, runs several at once, and retries until it is closed."""

    def __init__(self, store: Store, folder: Path, taken_by: Callable[[], str | None]) -> None:
        """`taken_by` returns the name of a driver that has taken the lease; nothing is written from then on.

        It raises ThreadDiedError if the lease is no longer watched.
        """
        self._store, self._folder, self._taken_by = store, folder, taken_by
        self._jobs: queue.SimpleQueue[Sequence[_Act] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._open = 0  # unfinished jobs
        self._failing_since: float | None = None
        self._moved_at = time.monotonic()  # when the store last accepted a chunk, or was idle
        self._reason = ""
        self._closed = threading.Event()
        self._threads = [WatchedThread(f"uploader-{number}", self._work) for number in range(_THREADS)]

    def enqueue(self, *names: str) -> None:
        """Enqueue the upload of files, each after the one before it has arrived. Return at once."""
        self._add([lambda name=name: self._upload(name) for name in names])  # type: ignore[misc]

    def delete(self, name: str) -> None:
        """Enqueue the removal of a file from the store. Return at once."""
        self._add([lambda: self._store.delete(name)])

    def check(self) -> None:
        """Raise PausedError while too many jobs wait for the store, RunStoppedError once waiting is useless."""
        self.check_lease()
        if self._stuck_s() > PATIENCE_S:
            raise self._given_up()
        if self._open >= MOST_BEHIND:
            raise PausedError(f"{self._open} episodes wait for {self._store.url}{self._because()}")

    def flush(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until everything is in the store.

        Raise RunStoppedError if the store accepts nothing for `patience_s`, or another driver takes the lease.
        """
        while self._open:
            self.check_lease()
            if self._stuck_s() > patience_s:
                raise self._given_up()
            with self._changed:
                self._changed.wait(timeout=0.2)

    def check_lease(self) -> None:
        """Raise RunStoppedError if another driver has taken the lease, or an upload thread has died."""
        try:
            other = self._taken_by()
            for thread in self._threads:
                thread.check()
        except ThreadDiedError as error:
            text = f"{error}; everything is in {self._folder}, and the same command brings it to {self._store.url}"
            raise RunStoppedError(text) from error
        if other is not None:
            raise RunStoppedError(
                f"another driver ({other}) has taken over {self._store.url}; what was finished is in {self._folder}"
            )

    def close(self) -> None:
        """End the threads and abandon unfinished jobs."""
        self._closed.set()
        deadline = time.monotonic() + _CLOSE_S
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _add(self, acts: Sequence[_Act]) -> None:
        with self._changed:
            self._open += 1
            if self._open == 1:
                self._moved()
        self._jobs.put(acts)

    def _work(self) -> None:
        while (acts := self._jobs.get()) is not None:
            if not all(map(self._insist, acts)):
                continue  # closed
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _insist(self, act: _Act) -> bool:
        """Retry `act` until it succeeds; return False if the uploader is closed or the lease is lost first."""
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set() and self._taken_by() is None:
            try:
                act()
            except (StoreError, OSError) as error:  # OSError: the local file cannot be opened
                self._failed(str(error))
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._succeeded()
                return True
        return False

    def _upload(self, name: str) -> None:
        try:
            self._store.upload(name, self._folder / name, self._moved)
        except FileNotFoundError:
            return  # withdrawn in the meantime

    def _failed(self, reason: str) -> None:
        with self._changed:
            first, self._reason = self._failing_since is None, reason
            if first:
                self._failing_since = time.monotonic()
        if first:
            _LOG.warning("%s; trying again, results are kept in %s meanwhile", reason, self._folder)

    def _succeeded(self) -> None:
        with self._changed:
            since, self._failing_since, self._reason = self._failing_since, None, ""
            self._moved()
        if since is not None:
            _LOG.warning("%s takes files again, after %.0f s", self._store.url, time.monotonic() - since)

    def _moved(self) -> None:
        self._moved_at = time.monotonic()

    def _stuck_s(self) -> float:
        """Return seconds since the store began to refuse, or accepted the last chunk of an upload."""
        since = min(self._moved_at, self._failing_since or self._moved_at)
        return time.monotonic() - since if self._open else 0.0

    def _because(self) -> str:
        return f" ({self._reason})" if self._failing_since is not None else ""

    def _given_up(self) -> RunStoppedError:
        reason = self._reason or f"{self._store.url} takes nothing"
        return RunStoppedError(
            f"{reason} for {self._stuck_s():.0f} s; {self._open} uploads are open, everything is in {self._folder}, "
            "and the same command brings it there and goes on"
        )
