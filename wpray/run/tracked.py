"""Rates of a run for an experiment tracker, and its results at the end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wpray.config import Config
from wpray.results.encode import EncodedEpisode
from wpray.results.statistics import Rate
from wpray.results.summary import Tally, TaskTally, suite_rate
from wpray.results.writer import RunFolder
from wpray.run.output import RunInfo
from wpray.trackers.process import TrackerProcess
from wpray.types import Trial

_LOG = logging.getLogger(__name__)
_EVERY_S = 1.0  # between two points of a curve
_SHARE = 0.01  # of the driver's time, at most, goes into rates: of thousands of tasks they take long
_COLUMNS = (
    "suite",
    "task",
    "name",
    "instruction",
    "successes",
    "episodes",
    "rate",
    "low",
    "high",
    "errors",
    "mean steps",
)
_FACTS = ("versions", "git_commit", "policy_files")


class TrackedRates:
    """Listener that sends success rates as they come, but not all of them."""

    def __init__(
        self,
        tally: Tally,
        send: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally, self._send, self._clock = tally, send, clock
        self._next_at = clock()

    def on_episode(self, trial: Trial, episode: EncodedEpisode) -> None:
        """Send the rates so far, unless it is too soon."""
        began = self._clock()
        if began >= self._next_at:
            self._send("rates", rates_of(self._tally))
            ended = self._clock()
            self._next_at = ended + max(_EVERY_S, (ended - began) / _SHARE)

    def on_progress(self, policy_busy_s: float, num_workers: int) -> None:
        """Ignore that a moment has passed."""


@contextlib.contextmanager
def tracked(config: Config, folder: RunFolder, info: RunInfo, tally: Tally) -> Iterator[TrackedRates | None]:
    """Yield the listener of the configured tracker; at the end, send it the results. None without a tracker.

    Nothing that the tracker does raises here.
    """
    process = None if config.track is None else _started(config.track, folder)
    if process is None:
        yield None
        return
    process.send("begin", _description(config, folder, info))
    try:
        yield TrackedRates(tally, process.send)
    finally:
        process.send("rates", rates_of(tally))
        process.close({"state": info.data.get("state", "running"), "table": _table(tally)})


def rates_of(tally: Tally) -> dict[str, Any]:
    """Return the numbers of a moment by name: the overall rate with its interval, and those of several suites."""
    metrics: dict[str, float] = {"errors": tally.errors, **_named(tally.overall)}
    suites = tally.suites
    if len(suites) > 1:
        for suite, rows in suites.items():
            metrics |= _named(suite_rate(rows), f"{suite}/")
    return {"episodes": tally.done, "metrics": metrics}


def _named(rate: Rate, prefix: str = "") -> dict[str, float]:
    if not rate.trials:
        return {}
    numbers = {"success_rate": rate.rate, "success_rate_low": rate.low, "success_rate_high": rate.high}
    return {prefix + name: value for name, value in numbers.items()}


def _started(name: str, folder: RunFolder) -> TrackerProcess | None:
    try:
        return TrackerProcess(name, folder.path)
    except (OSError, RuntimeError) as error:
        _LOG.warning("track: %s could not be started, the run goes on without it: %s", name, error)
        return None


def _description(config: Config, folder: RunFolder, info: RunInfo) -> dict[str, Any]:
    """Return what begins the run: its name, and its settings as `run.json` has them."""
    facts = {name: info.data[name] for name in _FACTS if info.data.get(name)}
    settings = dict(_flat({**info.data["config"], **facts}))
    names = {"run_id": info.run_id, "name": folder.path.name, "project": config.track_project}
    return {**names, "folder": str(folder.path.absolute()), "config": settings}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _table(tally: Tally) -> dict[str, Any]:
    return {"columns": _COLUMNS, "rows": [_row(row) for row in tally.rows]}


def _row(row: TaskTally) -> list[Any]:
    task, rate = row.task, row.rate
    shown = [rate.rate, rate.low, rate.high] if rate.trials else [None, None, None]
    steps = row.steps_to_success / row.successes if row.successes else None
    counts = [task.suite, task.task_id, task.name, task.instruction, rate.successes, rate.trials]
    return [*counts, *shown, row.errors, steps]
