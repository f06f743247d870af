"""Assignment of trials to workers: every trial ends exactly once, and workers change task as seldom as possible."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpray.orchestration.scheduler import Assignment, Scheduler, SuccessQuota
from wpray.types import Task, Trial


def _trials(counts: list[int], max_steps: list[int] | None = None) -> list[Trial]:
    """Return `counts[i]` trials of task i."""
    limits = max_steps or [100] * len(counts)
    tasks = [Task("suite", i, f"task_{i}", "do", 50, limit) for i, limit in enumerate(limits)]
    return [Trial(task, k, 0) for task, count in zip(tasks, counts, strict=True) for k in range(count)]


def _next(scheduler: Scheduler, worker: str) -> Assignment:
    assignment = scheduler.next_for(worker)
    assert assignment is not None
    return assignment


def _task_id(assignment: Assignment) -> int:
    return assignment.trial.task.task_id


def test_one_worker_runs_every_trial_once_task_after_task() -> None:
    trials = _trials([3, 3, 3])
    scheduler, order = Scheduler(trials, max_attempts=1), []
    while not scheduler.finished:
        assignment = _next(scheduler, "a")
        order.append(assignment.trial.key)
        assert scheduler.done(assignment)
    assert sorted(order) == [trial.key for trial in trials]
    assert sum(first[1] != second[1] for first, second in itertools.pairwise(order)) == 2


def test_workers_spread_over_tasks_the_longest_first() -> None:
    scheduler = Scheduler(_trials([2, 2, 2], max_steps=[100, 500, 300]), max_attempts=1)
    assert [_task_id(_next(scheduler, worker)) for worker in "abc"] == [1, 2, 1]


def test_rounds_bring_every_task_to_the_same_trial_and_change_task_seldom() -> None:
    scheduler, order = Scheduler(_trials([6, 6, 6]), max_attempts=1, round_size=2), []
    while not scheduler.finished:
        assignment = _next(scheduler, "a")
        order.append((_task_id(assignment), assignment.trial.init_state))
        assert scheduler.done(assignment)
    assert sorted(order) == [(task, trial) for task in range(3) for trial in range(6)]
    counts = [[sum(key[0] == task for key in order[:end]) for task in range(3)] for end in range(1, 19)]
    assert all(max(count) - min(count) <= 2 for count in counts)
    assert (
        sum(first[0] != second[0] for first, second in itertools.pairwise(order)) == 6
    )  # a round ends and the next begins with the same


def test_an_evened_out_schedule_ends_with_as_many_trials_of_every_task() -> None:
    scheduler, order = Scheduler(_trials([9, 9, 9]), max_attempts=2, round_size=2), []
    for worker in "ab":
        order.append(_next(scheduler, worker))
    for assignment in order[:]:
        scheduler.done(assignment)
        order.append(_next(scheduler, assignment.worker))
    scheduler.even_out()
    again = order.pop()
    assert scheduler.failed(again)  # a trial in hand that fails is still tried again
    scheduler.done(order[-1])
    while (assignment := scheduler.next_for("a")) is not None:
        order.append(assignment)
        scheduler.done(assignment)
    most = 1 + max(assignment.trial.init_state for assignment in order)
    assert scheduler.finished and 1 < most < 9
    assert sorted((_task_id(x), x.trial.init_state) for x in order) == [(t, k) for t in range(3) for k in range(most)]


def test_a_worker_keeps_its_task_until_it_is_used_up_and_then_helps_with_another() -> None:
    scheduler = Scheduler(_trials([2, 9]), max_attempts=1)
    long, short = _next(scheduler, "a"), _next(scheduler, "b")
    assert (_task_id(long), _task_id(short)) == (1, 1)  # two on nine trials still have more to do than one on two
    third = _next(scheduler, "c")
    assert _task_id(third) == 1
    seen = []
    while scheduler.num_pending:
        scheduler.done(third)
        third = _next(scheduler, "c")
        seen.append(_task_id(third))
    assert seen == sorted(seen, reverse=True)  # one change, at most
    assert scheduler.next_for("d") is None


def test_a_busy_worker_gets_nothing_more() -> None:
    scheduler = Scheduler(_trials([3]), max_attempts=1)
    _next(scheduler, "a")
    assert scheduler.next_for("a") is None


def test_a_failed_trial_goes_first_to_the_next_worker_until_its_attempts_are_used_up() -> None:
    scheduler = Scheduler(_trials([2]), max_attempts=2)
    first = _next(scheduler, "a")
    assert scheduler.failed(first)
    second = _next(scheduler, "b")
    assert (second.trial, second.attempt) == (first.trial, 2)
    assert not scheduler.failed(second)
    third = _next(scheduler, "b")
    assert (third.trial.init_state, third.attempt) == (1, 1)


def test_a_late_result_of_an_attempt_that_was_given_up_is_dropped() -> None:
    scheduler = Scheduler(_trials([1]), max_attempts=3)
    first = _next(scheduler, "a")
    assert scheduler.forget("a") == first
    assert scheduler.failed(first)
    second = _next(scheduler, "a")
    assert not scheduler.done(first)
    with pytest.raises(ValueError, match="not running"):
        scheduler.failed(first)
    assert scheduler.done(second)
    assert not scheduler.done(second)
    assert scheduler.finished


def test_a_dead_idle_worker_leaves_its_task_to_others() -> None:
    scheduler = Scheduler(_trials([4, 4]), max_attempts=1)
    scheduler.done(_next(scheduler, "a"))
    assert scheduler.forget("a") is None
    assert scheduler.forget("never seen") is None
    assert _task_id(_next(scheduler, "b")) == 1  # four are left there, three of task 0
    assert _task_id(_next(scheduler, "c")) == 0


def test_stopping_leaves_what_is_pending_and_waits_for_what_runs() -> None:
    scheduler = Scheduler(_trials([3]), max_attempts=1)
    running = _next(scheduler, "a")
    assert scheduler.num_open == 3
    scheduler.stop_taking()
    assert (scheduler.num_open, scheduler.finished) == (1, False)
    assert scheduler.next_for("b") is None
    scheduler.done(running)
    assert scheduler.finished


def test_nothing_to_do_is_finished() -> None:
    assert Scheduler([], max_attempts=1).finished


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_whatever_dies_or_fails_every_trial_ends_exactly_once(counts: list[int], data: st.DataObject) -> None:
    trials, max_attempts = _trials(counts), 2
    scheduler = Scheduler(trials, max_attempts)
    names, ended, attempts = iter(range(10_000)), [], []
    workers = [f"w{next(names)}" for _ in range(3)]
    while not scheduler.finished:
        worker = data.draw(st.sampled_from(workers))
        held = scheduler.running.get(worker)
        if held is None:
            taken = scheduler.next_for(worker)
            attempts += [] if taken is None else [(taken.trial.key, taken.attempt)]
            in_hand = [assignment.trial.key for assignment in scheduler.running.values()]
            assert len(in_hand) == len(set(in_hand))
            continue
        fate = data.draw(st.sampled_from(("done", "done", "failed", "died")))
        if fate == "died":
            assert scheduler.forget(worker) == held
            workers[workers.index(worker)] = f"w{next(names)}"
        if fate == "done":
            assert scheduler.done(held)
        if fate == "done" or not scheduler.failed(held):
            ended.append(held.trial.key)
    assert sorted(ended) == [trial.key for trial in trials]
    assert len(attempts) == len(set(attempts))
    assert max(attempt for _, attempt in attempts) <= max_attempts


@settings(max_examples=60, deadline=None)
@given(num_tasks=st.integers(1, 10), per_task=st.integers(1, 8), num_workers=st.integers(1, 8), data=st.data())
def test_workers_compile_few_tasks_and_none_idles_while_work_is_left(
    num_tasks: int, per_task: int, num_workers: int, data: st.DataObject
) -> None:
    scheduler = Scheduler(_trials([per_task] * num_tasks), max_attempts=1)
    workers = [f"w{i}" for i in range(num_workers)]
    compiled: dict[str, list[int]] = {worker: [] for worker in workers}
    while not scheduler.finished:
        for worker in workers:
            taken = None if worker in scheduler.running else scheduler.next_for(worker)
            if taken is not None and compiled[worker][-1:] != [_task_id(taken)]:
                compiled[worker].append(_task_id(taken))
            assert worker in scheduler.running or scheduler.num_pending == 0
        finishing = data.draw(st.sampled_from(sorted(scheduler.running)))
        scheduler.done(scheduler.running[finishing])
    for tasks in compiled.values():
        assert len(tasks) == len(set(tasks))  # nobody comes back to a task that it has left
    assert sum(map(len, compiled.values())) <= num_tasks * min(num_workers, per_task)
    if num_workers == 1:
        assert len(compiled["w0"]) == num_tasks


@dataclass
class _Tail:
    """Simulation of a run: an idle worker requests a trial at once, and again when an attempt has failed."""

    scheduler: Scheduler
    failing: set[tuple[str, int, int]]  # trials whose first attempt fails
    drawn: random.Random
    compile_s: float = 5.0
    longest_s: float = 0.0  # attempt, compiling included
    idle_with_work_s: float = 0.0  # longest
    last_end: dict[str, float] = field(default_factory=dict)
    end_s: float = 0.0

    def run(self, workers: list[str]) -> None:
        ends: list[tuple[float, str]] = []
        compiled: dict[str, int] = {}
        idle = dict.fromkeys(workers, 0.0)
        while not self.scheduler.finished:
            for worker in list(idle):
                taken = self.scheduler.next_for(worker)
                if taken is None:
                    continue
                self.idle_with_work_s = max(self.idle_with_work_s, self.end_s - idle.pop(worker) if ends else 0.0)
                heapq.heappush(ends, (self.end_s + self._attempt_s(taken, compiled), worker))
            self.end_s, worker = heapq.heappop(ends)
            self._close(self.scheduler.running[worker])
            idle[worker] = self.last_end[worker] = self.end_s

    def _attempt_s(self, taken: Assignment, compiled: dict[str, int]) -> float:
        fresh = compiled.get(taken.worker) != _task_id(taken)
        compiled[taken.worker] = _task_id(taken)
        seconds = self.compile_s * fresh + 0.01 * self.drawn.uniform(0.2, 1.0) * taken.trial.task.max_steps
        self.longest_s = max(self.longest_s, seconds)
        return seconds

    def _close(self, held: Assignment) -> None:
        if held.trial.key in self.failing and held.attempt == 1:
            assert self.scheduler.failed(held)
        else:
            assert self.scheduler.done(held)


@pytest.mark.parametrize("num_workers", [1, 3, 16, 61, 200])
@pytest.mark.parametrize("per_task", [1, 7, 50])
def test_at_the_end_of_a_run_no_actor_idles_longer_than_one_episode(num_workers: int, per_task: int) -> None:
    limits = [220, 280, 300, 520, 400, 220, 280, 520, 300, 400]
    trials = _trials([per_task] * 10, max_steps=limits)
    workers = [f"w{i}" for i in range(num_workers)]
    tail = _Tail(Scheduler(trials, max_attempts=2), set(), random.Random(num_workers))
    tail.run(workers)
    assert tail.idle_with_work_s == 0  # a trial that can be handed out is
    assert len(tail.last_end) == min(num_workers, len(trials))
    assert all(tail.end_s - ended <= tail.longest_s for ended in tail.last_end.values())


def test_the_longest_tasks_start_first_so_the_tail_is_short() -> None:
    limits = [100] * 9 + [1000]
    tail = _Tail(Scheduler(_trials([10] * 10, max_steps=limits), 1), set(), random.Random(0), compile_s=0.0)
    tail.run([f"w{i}" for i in range(20)])
    shares = 0.01 * 0.6 * sum(limits) * 10 / 20  # seconds of each of the 20, if work could be cut at will
    assert tail.end_s < shares + 0.01 * max(limits)


def test_a_trial_that_fails_in_the_tail_goes_to_an_idle_actor_at_once() -> None:
    trials = _trials([5, 5], max_steps=[300, 520])
    failing = {trial.key for trial in trials[-3:]}
    tail = _Tail(Scheduler(trials, max_attempts=2), failing, random.Random(1))
    tail.run([f"w{i}" for i in range(12)])
    # idle while all the work was in hand, which is no longer than the attempt that then failed
    assert tail.idle_with_work_s <= tail.longest_s
    assert tail.end_s <= 2 * tail.longest_s


def _variants(scenes: list[str], counts: int = 1) -> list[Trial]:
    """Return `counts` trials of one task for each entry of `scenes`."""
    tasks = [Task("suite", i, f"task_{i}", "do", 50, 100, scene) for i, scene in enumerate(scenes)]
    return [Trial(task, k, 0) for task in tasks for k in range(counts)]


def _scenes(scheduler: Scheduler, workers: str) -> dict[str, list[str]]:
    """Run everything, one worker after the other; return the scenes that each had, in order."""
    seen: dict[str, list[str]] = {worker: [] for worker in workers}
    while not scheduler.finished:
        for worker in workers:
            if (assignment := scheduler.next_for(worker)) is not None:
                seen[worker].append(assignment.trial.task.scene)
                assert scheduler.done(assignment)
    return seen


def test_tasks_of_one_scene_follow_each_other_on_one_actor() -> None:
    seen = _scenes(Scheduler(_variants(list("xyzw" * 25)), max_attempts=1), "ab")
    changes = {worker: sum(a != b for a, b in itertools.pairwise(scenes)) for worker, scenes in seen.items()}
    assert changes == {"a": 1, "b": 1}
    assert sorted(seen["a"] + seen["b"]) == sorted("xyzw" * 25)


def test_rounds_and_quotas_count_by_task_where_tasks_share_a_scene() -> None:
    rounds, order = Scheduler(_variants(list("xxy"), counts=4), max_attempts=1, round_size=2), []
    while (assignment := rounds.next_for("a")) is not None:
        order.append(assignment.trial.init_state // 2)
        rounds.done(assignment)
    assert order == [0] * 6 + [1] * 6
    quota = SuccessQuota(1, {})
    wanted, ran = Scheduler(_variants(list("xx"), counts=3), max_attempts=1, quota=quota), []
    while (assignment := wanted.next_for("a")) is not None:
        ran.append((assignment.trial.task.task_id, assignment.trial.init_state))
        wanted.done(assignment, solved=assignment.trial.init_state == assignment.trial.task.task_id)
    assert ran == [(0, 0), (1, 0), (1, 1)]
    assert wanted.finished


def test_an_assignment_keeps_its_scene_on_the_way_to_its_actor() -> None:
    assignment = Assignment(_variants(["x"])[0], 1, "a")
    assert Assignment.of(assignment.plain()) == assignment
