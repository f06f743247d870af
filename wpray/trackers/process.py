"""The run's end of a tracker's process: nothing that the tracker does can delay, stop or crash the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wpray.system.threads import WatchedThread

_LOG = logging.getLogger(__name__)
LOG_NAME = "tracker.log"  # what the tracker prints
_MOST_WAITING = 256  # messages; a tracker that is further behind gets fewer points of its curves
END_S = 120.0  # longest wait for what is sent at the end
_JOIN_S = 5.0


class TrackerProcess:
    """Process of a tracker, fed by a thread, so that `send` returns at once."""

    def __init__(self, name: str, folder: Path, end_s: float | None = None) -> None:
        """Start it. Raises OSError or RuntimeError if the machine gives no process or thread."""
        self._name, self._end_s = name, END_S if end_s is None else end_s
        self._log = folder / LOG_NAME
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wpray.trackers.worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # a tracker of the caller's own is found
                start_new_session=True,  # Ctrl-C is the run's; and its own group can be ended as a whole
                text=True,
                encoding="utf-8",
            )
        self._messages: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._threads = [WatchedThread(f"tracker-{work.__name__}", work) for work in (self._write, self._read)]

    def send(self, kind: str, content: Mapping[str, Any]) -> None:
        """Send a message soon; drop it if too many wait."""
        with contextlib.suppress(queue.Full):
            self._messages.put_nowait(json.dumps({"kind": kind, **content}))

    def close(self, content: Mapping[str, Any]) -> None:
        """Send the last message, and wait until the tracker is done. End it if that takes too long."""
        deadline = time.monotonic() + self._end_s
        try:
            self._messages.put(json.dumps({"kind": "end", **content}), timeout=self._end_s)
            self._messages.put(None, timeout=max(0.0, deadline - time.monotonic()))
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except (queue.Full, subprocess.TimeoutExpired):
            self._warn(f"has not finished within {self._end_s:.0f} s and was ended")
        except KeyboardInterrupt:
            self._warn("was interrupted before it had finished")
        finally:
            self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        elif self._process.returncode:
            self._warn(f"ended with exit code {self._process.returncode}")
        with contextlib.suppress(queue.Full):
            self._messages.put(None, timeout=_JOIN_S)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _write(self) -> None:
        """Pass the messages on, until the last one; drop them once the process has gone."""
        pipe = self._process.stdin
        assert pipe is not None
        is_open = True
        while (message := self._messages.get()) is not None:
            if is_open:
                try:
                    pipe.write(message + "\n")
                    pipe.flush()
                except OSError:
                    is_open = False
        with contextlib.suppress(OSError):
            pipe.close()

    def _read(self) -> None:
        """Warn of what the process reports."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._warn(line.strip())

    def _warn(self, what: str) -> None:
        _LOG.warning("track: %s: %s; the run and its results are unaffected (see %s)", self._name, what, self._log)
