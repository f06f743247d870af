"""Lines of a policy's process on their way into the run's log."""

from __future__ import annotations

import logging
from collections import deque

from wpray.policies.base import NOTICES

_MOST = 100  # lines that wait; the oldest are dropped


class NoticeKeeper(logging.Handler):
    """Handler that keeps the warnings of the notices' logger in this process until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=_MOST)
        logging.getLogger(NOTICES).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        """Return the lines since the last call."""
        return tuple(self._lines.popleft() for _ in range(len(self._lines)))
