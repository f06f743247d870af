"""`python -m wpray.trackers.worker NAME`: the process that runs a tracker's code.

It reads messages from its standard input, a line of JSON each, and writes to its standard output a line for everything
that fails. What the tracker itself prints goes to the standard error stream.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from wpray.errors import BadInputError, wrapping_errors
from wpray.trackers.base import TaskTable, TrackedRun, TrackedState, Tracker
from wpray.trackers.factory import open_tracker

_CALL_S = 600  # one call that takes longer ends the process, so that no process stays behind a run that was killed
_NICE = 10  # environments and policies have the cores first
_VIDEOS = 8


class _TrackerError(Exception):
    """Error of the tracker."""


class TrackerWorker:
    """Tracker of a run, whose errors are reported and end nothing."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report = name, report
        self._tracker: Tracker | None = None
        self._failed: set[str] = set()  # what has been reported already
        self._folder = Path()

    def handle(self, message: dict[str, Any]) -> None:
        """Do what a message says: begin, rates or end."""
        kind = message.pop("kind")
        if kind == "begin":
            self._begin(TrackedRun(**message))
        elif self._tracker is not None and kind == "rates":
            self._call("sending rates", self._tracker.log_rates, message["episodes"], message["metrics"])
        elif self._tracker is not None and kind == "end":
            self._send_results(self._tracker, TaskTable(**message["table"]))
            self.end(message["state"])

    def end(self, state: TrackedState) -> None:
        """End the tracker's run, once."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._call("ending the run", tracker.end, state)

    def _begin(self, run: TrackedRun) -> None:
        self._folder = Path(run.folder)
        self._tracker = self._call("starting the run", open_tracker, self._name, run)

    def _send_results(self, tracker: Tracker, table: TaskTable) -> None:
        self._call("sending the table", tracker.log_table, table)
        page = self._folder / "report.html"
        if page.exists():
            self._call("sending the report", tracker.log_report, page)
        for path in some_videos(self._folder):
            self._call("sending a video", tracker.log_video, path.stem, path)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the tracker's function returns; report what it raises, once for each kind of call."""
        try:
            with wrapping_errors(_TrackerError, KeyboardInterrupt, caught=BaseException), _within(_CALL_S):
                return function(*arguments)
        except _TrackerError as error:
            cause = error.__cause__
            if what not in self._failed:
                self._report(f"{what} failed ({type(cause).__name__}: {' '.join(str(cause).split())[:300]})")
            self._failed.add(what)
            return None


def some_videos(folder: Path) -> list[Path]:
    """Return files of a few episodes' videos, failures and successes in turn; none if the run has none."""
    from wpray.results import load

    try:
        run = load(folder)
    except BadInputError:  # not one episode has finished
        return []
    rows = run.episodes.select(["status", "video_path"]).to_pylist()
    found = [(row["status"], path) for row in rows if (path := run.video(row["video_path"])) is not None]
    failures = [path for status, path in found if status == "failure"]
    successes = [path for status, path in found if status != "failure"]
    few = failures[: max(_VIDEOS // 2, _VIDEOS - len(successes))]
    return [*few, *successes[: _VIDEOS - len(few)]]


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """End the process by SIGALRM if the context takes longer, also where Python code no longer runs."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _own_streams() -> tuple[IO[str], IO[str]]:
    """Return the standard input and output, which the tracker's code then has no more."""
    messages = os.fdopen(os.dup(0), "r", encoding="utf-8")
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # an error's text may be no UTF-8
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return messages, reports


def main(argv: Sequence[str]) -> None:
    """Serve the run at the other end until it ends or has gone."""
    messages, reports = _own_streams()
    os.nice(_NICE)
    worker = TrackerWorker(argv[0], lambda line: print(line, file=reports, flush=True))
    for line in messages:
        worker.handle(json.loads(line))
    worker.end("running")


if __name__ == "__main__":
    main(sys.argv[1:])
