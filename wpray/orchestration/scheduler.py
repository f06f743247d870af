"""Scheduler: which actor runs which trial next. Pure bookkeeping, without Ray and without a clock.

An actor keeps the scene that it has compiled (of one task, or of several that share it) as long as it has trials left.
Then it takes the scene with the most remaining work and the fewest actors, so that the longest tasks start first and no
actor idles while work is left. A run that may stop early goes through the scenes in rounds instead, so that all tasks
have about as many trials when it stops.
Every trial ends exactly once: in a result, or, after too many lost attempts, as an error.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from wpray.types import AttemptError, Failure, Task, TaskKey, Trial, TrialKey

SceneKey = str | TaskKey  # the scene's name, or a task that has one of its own


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of a trial by one worker."""

    trial: Trial
    attempt: int  # from 1
    worker: str
    errors: tuple[AttemptError, ...] = field(default=(), compare=False)  # of the attempts before it

    def plain(self) -> list[Any]:
        """Return the values for a call: Ray would pickle the object in Python, and double the call's CPU time."""
        trial, task = self.trial, self.trial.task
        about = [task.suite, task.task_id, task.name, task.instruction, task.num_trials, task.max_steps, task.scene]
        errors = [(error.attempt, error.worker, astuple(error.failure)) for error in self.errors]
        return [about, trial.init_state, trial.seed, trial.own_state, self.attempt, self.worker, errors]

    @classmethod
    def of(cls, plain: Sequence[Any]) -> Assignment:
        """Return the assignment that `plain` was made of."""
        about, trial, seed, state, attempt, worker, errors = plain
        before = tuple(AttemptError(number, name, Failure(*failure)) for number, name, failure in errors)
        return cls(Trial(Task(*about), trial, seed, state), attempt, worker, before)


class SuccessQuota:
    """Number of successes wanted of each task; no trial of a task is run beyond the last of them.

    No more trials of a task run at once than successes are missing. So those that run are the ones that a serial run
    would have reached, however many actors there are: before each of them, fewer successes than wanted are possible.
    """

    def __init__(self, wanted: int, solved: Mapping[TaskKey, int]) -> None:
        """Count from `solved`, the successes of each task so far."""
        self._wanted, self._solved = wanted, Counter(solved)

    def is_open(self, task: TaskKey, in_hand: int) -> bool:
        """Return whether another trial of `task` may run beside `in_hand` of them."""
        return self._solved[task] + in_hand < self._wanted

    def add(self, task: TaskKey) -> bool:
        """Count a success; return whether it is the last that is wanted."""
        self._solved[task] += 1
        return self._solved[task] >= self._wanted


class Scheduler:
    """Trials that are pending or running, and the worker of each."""

    def __init__(
        self,
        trials: Iterable[Trial],
        max_attempts: int,
        round_size: int | None = None,
        quota: SuccessQuota | None = None,
    ) -> None:
        """Queue the trials.

        `round_size`: so many trials of every task run before the next ones of any. An actor may be a round ahead if
        others work on the tasks that are behind.
        """
        self._max_attempts, self._round_size, self._quota = max_attempts, round_size, quota
        self._pending: dict[SceneKey, deque[Trial]] = {}
        for trial in sorted(trials, key=self._round):
            if quota is None or quota.is_open(trial.task.key, 0):
                self._pending.setdefault(scene_of(trial), deque()).append(trial)
        self._running: dict[str, Assignment] = {}
        self._scene: dict[str, SceneKey] = {}
        self._workers_on: Counter[SceneKey] = Counter()
        self._attempts: Counter[TrialKey] = Counter()
        self._errors: dict[TrialKey, list[AttemptError]] = {}  # of attempts that another follows
        self._taking = True
        self._begun = 0  # trials begun by the task that is furthest ahead
        self.num_pending = sum(len(queue) for queue in self._pending.values())

    @property
    def finished(self) -> bool:
        """True if nothing runs and nothing will."""
        return not self._running and (not self._taking or self.num_pending == 0)

    @property
    def running(self) -> dict[str, Assignment]:
        """Assignments of the busy workers, by name."""
        return self._running

    @property
    def num_open(self) -> int:
        """Number of trials that run or are still to be assigned."""
        return len(self._running) + (self.num_pending if self._taking else 0)

    def stop_taking(self) -> None:
        """Assign no further trial; those that run continue."""
        self._taking = False

    def even_out(self) -> None:
        """Limit every task to as many trials as the task furthest ahead has begun, for a mean over equal shares."""
        for scene, queue in self._pending.items():
            self._pending[scene] = deque(trial for trial in queue if trial.init_state < self._begun)
        self.num_pending = sum(len(queue) for queue in self._pending.values())

    def holds(self, worker: str, scene: SceneKey) -> None:
        """Note the scene that a new `worker` has compiled already, in an earlier run."""
        self._move(worker, scene)

    def next_for(self, worker: str) -> Assignment | None:
        """Return the next attempt for an idle `worker`, or None if no trial is left to assign."""
        if not self._taking or self.num_pending == 0 or worker in self._running:
            return None
        first = self._open_trials()
        if not first:
            return None
        scene = self._choose(worker, first)
        self._move(worker, scene)
        trial = first[scene]
        self._pending[scene].remove(trial)
        self.num_pending -= 1
        self._attempts[trial.key] += 1
        self._begun = max(self._begun, trial.init_state + 1)
        errors = tuple(self._errors.get(trial.key, ()))
        assignment = Assignment(trial, self._attempts[trial.key], worker, errors)
        self._running[worker] = assignment
        return assignment

    def done(self, assignment: Assignment, solved: bool = False) -> bool:
        """Close an attempt; return False if it was given up before, so that its late result must be dropped.

        `solved`: its trial is a success, perhaps the last that is wanted of its task.
        """
        if self._running.get(assignment.worker) != assignment:
            return False
        del self._running[assignment.worker]
        task, scene = assignment.trial.task.key, scene_of(assignment.trial)
        if self._quota is not None and solved and self._quota.add(task):
            left = deque(trial for trial in self._pending[scene] if trial.task.key != task)
            self.num_pending -= len(self._pending[scene]) - len(left)
            self._pending[scene] = left
        return True

    def failed(self, assignment: Assignment, error: AttemptError | None = None) -> bool:
        """Close a failed attempt and queue its trial first in line; return False if no attempt is left.

        The next attempt carries `error`, why this one failed. Call it only for an attempt that `done` would accept.
        """
        if not self.done(assignment):
            raise ValueError(f"{assignment} is not running")
        if assignment.attempt >= self._max_attempts:
            return False
        if error is not None:
            self._errors.setdefault(assignment.trial.key, []).append(error)
        self._pending[scene_of(assignment.trial)].appendleft(assignment.trial)
        self.num_pending += 1
        return True

    def forget(self, worker: str) -> Assignment | None:
        """Remove a dead worker; return its attempt, which is still to be marked as `failed`."""
        self._leave(worker)
        return self._running.get(worker)

    def _open_trials(self) -> dict[SceneKey, Trial]:
        """Return the first trial that may be assigned now of each scene that has one."""
        waiting = {scene: queue for scene, queue in self._pending.items() if queue}
        if self._quota is None:
            return {scene: queue[0] for scene, queue in waiting.items()}
        in_hand = Counter(assignment.trial.task.key for assignment in self._running.values())
        quota = self._quota
        found = {
            scene: next((trial for trial in queue if quota.is_open(trial.task.key, in_hand[trial.task.key])), None)
            for scene, queue in waiting.items()
        }
        return {scene: trial for scene, trial in found.items() if trial is not None}

    def _choose(self, worker: str, trials: Mapping[SceneKey, Trial]) -> SceneKey:
        rounds = {scene: self._round(trial) for scene, trial in trials.items()}
        first, current = min(rounds.values()), self._scene.get(worker)
        behind = [scene for scene, its_round in rounds.items() if its_round == first]
        cared_for = all(self._workers_on[scene] for scene in behind)
        if current is not None and rounds.get(current) in (first, first + 1 if cared_for else first):
            return current
        return max(behind, key=self._urgency)

    def _round(self, trial: Trial) -> int:
        return trial.init_state // self._round_size if self._round_size else 0

    def _urgency(self, scene: SceneKey) -> float:
        """Return the steps to come for each actor that would share them."""
        queue = self._pending[scene]
        return len(queue) * queue[0].task.max_steps / (1 + self._workers_on[scene])

    def _move(self, worker: str, scene: SceneKey) -> None:
        if self._scene.get(worker) != scene:
            self._leave(worker)
            self._scene[worker] = scene
            self._workers_on[scene] += 1

    def _leave(self, worker: str) -> None:
        scene = self._scene.pop(worker, None)
        if scene is not None:
            self._workers_on[scene] -= 1


def scene_of(trial: Trial) -> SceneKey:
    """Return the scene that an actor compiles for a trial."""
    return trial.task.scene or trial.task.key
