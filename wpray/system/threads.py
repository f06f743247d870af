"""Threads that cannot die unnoticed. wpray starts all threads here, except pools whose caller waits for them.

The end of each is noticed as follows:

- policy (policies/batching.py): every request of its batcher fails, the connections that wait for one are closed, and
  the replica's `health` raises, so that the driver replaces the process.
- drawing (transport/drawing.py): as for the policy.
- accept (transport/connection.py): `health` raises, as above.
- connection (transport/connection.py): the connection closes, so that the env actor at the other end retries.
- uploader (storage/uploader.py): the next row that is written, or `flush`, stops the run.
- lease (storage/lease.py): as for the uploader, because another driver could take the lease unnoticed.
- tracker (trackers/process.py): the tracker gets no more, is ended at its deadline, and the run goes on.
- statistics (run/evaluation.py): the first interval imports them itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from wpray.errors import ThreadDiedError, wrapping_errors

_LOG = logging.getLogger(__name__)


class WatchedThread:
    """Daemon thread whose death is logged, passed on to `on_death`, and raised by `check`."""

    def __init__(
        self, name: str, work: Callable[[], None], on_death: Callable[[ThreadDiedError], None] | None = None
    ) -> None:
        """Start `work` at once. Raises RuntimeError if the machine gives no more threads.

        `on_death` is called in the thread when `work` raises anything, SystemExit included; not when it returns.
        """
        self._name, self._work, self._on_death = name, work, on_death
        self._died: ThreadDiedError | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ThreadDiedError if the thread has died."""
        if self._died is not None:
            raise ThreadDiedError(*self._died.args)  # a new one, because each raise would lengthen its traceback

    def is_alive(self) -> bool:
        """Return whether it still works."""
        return self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            with wrapping_errors(self._death, caught=BaseException):
                self._work()
        except ThreadDiedError as death:
            self._died = ThreadDiedError(*death.args)  # a new one, because the cause of this one keeps its frames alive
            _LOG.error("%s", death, exc_info=death.__cause__)
            if self._on_death is not None:
                self._on_death(self._died)

    def _death(self, error: BaseException) -> ThreadDiedError:
        return ThreadDiedError(f"the thread {self._name} died: {type(error).__name__}: {error}")
