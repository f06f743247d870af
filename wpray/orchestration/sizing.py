"""Correction of the number of environments while a run goes on, from what they and the policy have waited for.

It decides rarely: once every environment has finished an episode since the last change, and some more in which it is
measured. More environments are tried where they wait for the policy and cores idle, fewer are kept where they only wait
for one another. A change that does not do what it is for is taken back, and is the last. Outcomes do not depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from wpray.results.encode import EncodedEpisode
from wpray.system.hardware import busy_seconds

_ROUNDS = 2  # episodes of every environment that are measured, after one in which it starts and compiles
_STEP = 1.25  # of the number, up or down
_MOST_CHANGES = 3
_WORTH = 10  # episodes that are left for each environment, because more of them start for the time of several
_WAITING, _IDLE = 0.3, 0.3  # shares of the environments' time and of the cores from which more are tried
_HARDLY, _BUSY, _RESTS = 0.1, 0.1, 0.5  # the same, and the policy's busy share, below which fewer are as good
_GAIN, _LOSS = 1.05, 0.97  # of the pace: more must bring as much, fewer may cost as much


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Limits of the number of environments on a machine."""

    least: int
    most: int
    cores: int
    places: int  # requests that the policy can answer at once


@dataclass(frozen=True, slots=True)
class Load:
    """Load of a run while its environments had work."""

    steps_per_s: float  # control steps, of all environments
    waiting: float  # share of the environments' time in which they waited for the policy
    idle: float  # share of the cores
    policy_busy: float  # share of the policy actors' time


@dataclass(frozen=True, slots=True)
class Change:
    """Another number of environments, and why."""

    number: int
    before: int
    because: str


def change_for(load: Load, number: int, limits: SizeLimits) -> Change | None:
    """Return a better number of environments than `number` under this load; None if there is no reason for one."""
    waits = f"they wait {load.waiting:.0%} of their time for the policy"
    if load.waiting >= _WAITING and load.idle >= _IDLE and number * load.waiting < limits.places:
        more = min(limits.most, math.ceil(_STEP * number))
        because = f"{waits}, which could answer more at once, and {load.idle:.0%} of the cores idle"
        return Change(more, number, because) if more > number else None
    if load.waiting <= _HARDLY and load.idle <= _BUSY and load.policy_busy <= _RESTS:
        fewer = max(limits.least, int(number / _STEP))
        because = f"{waits}, which is busy {load.policy_busy:.0%} of its own, and the cores are the limit"
        return Change(fewer, number, because) if fewer < number else None
    return None


class Sizer:
    """Measures a run and says when another number of environments is better. Not thread-safe."""

    def __init__(
        self,
        number: int,
        limits: SizeLimits,
        replicas: int,
        clock: Callable[[], float] = time.monotonic,
        busy_cpu_s: Callable[[], float | None] = busy_seconds,
    ) -> None:
        """Begin with `number` environments and `replicas` policy actors.

        `busy_cpu_s` returns the seconds that the machine's cores have worked; where it returns None, nothing changes.
        """
        self.number = number
        self._limits, self._replicas, self._clock, self._busy_cpu_s = limits, replicas, clock, busy_cpu_s
        self._round, self._to_come = 0, set[str]()  # environments that have not finished an episode of this round
        self._window: _Window | None = None
        self._changed: tuple[Change, float] | None = None  # the last change, and the pace before it
        self._changes_left = _MOST_CHANGES

    def finished(
        self, worker: str, workers: Collection[str], episode: EncodedEpisode, policy_busy_s: float, left: int
    ) -> Change | None:
        """Take an episode of one of the `workers`, alive or starting; return a change that is to be made now.

        `policy_busy_s`: seconds of computing of all policy actors so far. `left`: trials that run or are to come.
        """
        is_settled = self._changes_left == 0 and self._changed is None
        if is_settled or (not self._to_come and len(workers) != self.number):
            return None
        self._to_come = self._to_come or set(workers)
        self._to_come.discard(worker)
        if self._window is not None:
            self._window.add(episode)
        if self._to_come:
            return None
        self._round += 1
        if self._round == 1:
            self._window = self._opened(policy_busy_s)
        if self._round <= _ROUNDS or self._window is None:
            return None
        load = self._window.load(self._opened(policy_busy_s), self._limits.cores, self._replicas)
        self._round, self._window = 0, None
        return None if load is None else self._decided(load, left)

    def lost(self, worker: str) -> None:
        """Wait no longer for a worker that is gone."""
        self._to_come.discard(worker)

    def _opened(self, policy_busy_s: float) -> _Window | None:
        busy = self._busy_cpu_s()
        return None if busy is None else _Window(self._clock(), busy, policy_busy_s)

    def _decided(self, load: Load, left: int) -> Change | None:
        change = self._taken_back(load)
        if change is None and self._changes_left > 0:
            change = change_for(load, self.number, self._limits)
            self._changed = None if change is None else (change, load.steps_per_s)
        if change is None or (change.number > self.number and left < _WORTH * change.number):
            self._changed = None
            return None
        self._changes_left, self.number = max(0, self._changes_left - 1), change.number
        return change

    def _taken_back(self, load: Load) -> Change | None:
        """Return the way back from a change that did not do what it was for; none follows."""
        if self._changed is None:
            return None
        change, before = self._changed
        self._changed = None
        if load.steps_per_s >= (_GAIN if change.number > change.before else _LOSS) * before:
            return None
        self._changes_left = 0
        because = f"{change.number} made {load.steps_per_s:.0f} instead of {before:.0f} control steps a second"
        return Change(change.before, change.number, because)


@dataclass(slots=True)
class _Window:
    """State of the clocks when a measurement began, and sums over the episodes since."""

    at: float
    busy_cpu_s: float
    policy_busy_s: float
    steps: int = 0
    wait_s: float = 0.0
    wall_s: float = 0.0

    def add(self, episode: EncodedEpisode) -> None:
        self.steps += episode.num_steps
        self.wait_s += episode.utilisation[1]
        self.wall_s += episode.wall_s

    def load(self, now: _Window | None, cores: int, replicas: int) -> Load | None:
        """Return the load until `now`; None if nothing can be said of it."""
        if now is None or now.at <= self.at or self.wall_s == 0:
            return None
        seconds = now.at - self.at
        return Load(
            steps_per_s=self.steps / seconds,
            waiting=self.wait_s / self.wall_s,
            idle=max(0.0, 1 - (now.busy_cpu_s - self.busy_cpu_s) / (seconds * cores)),
            policy_busy=(now.policy_busy_s - self.policy_busy_s) / (seconds * replicas),
        )
