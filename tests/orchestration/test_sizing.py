"""The number of environments is corrected during a run where that helps, and outcomes do not notice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults.policies import slow
from tests.orchestration.shared_trials import keep_a_trial_for_each
from tests.results.recorded import read_json
from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.cli.configuration import read_config
from wpray.config import Config
from wpray.orchestration.actors import ActorHost, Attempt, RunContext, rollout_settings
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.env_actor_pool import EnvActorPool
from wpray.orchestration.events import AttemptFinished, EnvReady, Event, EventQueue, PolicyHashed, PolicyReady
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.orchestration.sizing import Change, Load, SizeLimits, Sizer, change_for
from wpray.policies.factory import policy_spec
from wpray.policies.local import LocalPolicyClient
from wpray.results import load
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.rollout import run_trial
from wpray.run.evaluation import evaluate
from wpray.types import Trial, TrialKey

LIMITS = SizeLimits(least=28, most=88, cores=16, places=32)
LAZY = Load(steps_per_s=1000, waiting=0.6, idle=0.5, policy_busy=0.9)
CROWDED = Load(steps_per_s=1000, waiting=0.02, idle=0.0, policy_busy=0.2)


@pytest.mark.parametrize(
    ("load", "number", "better"),
    [
        (LAZY, 24, 30),
        (LAZY, 80, None),  # 48 wait already, and the policy answers 32 at once
        (Load(1000, 0.3, 0.5, 0.3), 80, 88),  # the limit of memory
        (Load(1000, 0.3, 0.5, 0.3), 88, None),
        (Load(1000, 0.6, 0.2, 0.9), 24, None),  # no cores for more
        (Load(1000, 0.2, 0.5, 0.9), 24, None),  # they rarely wait: nor would more of them
        (CROWDED, 44, 35),
        (CROWDED, 30, 28),
        (CROWDED, 28, None),
        (Load(1000, 0.02, 0.0, 0.8), 44, None),
        (Load(1000, 0.2, 0.0, 0.2), 44, None),
        (Load(1000, 0.02, 0.3, 0.2), 44, None),
    ],
)
def test_more_are_tried_where_they_wait_and_cores_idle_and_fewer_where_they_wait_for_cores(
    load: Load, number: int, better: int | None
) -> None:
    found = change_for(load, number, LIMITS)
    assert (None if found is None else found.number) == better


class Machine:
    """Run in which every environment finishes an episode a round, with a clock of its own."""

    def __init__(self, number: int, most: int = 88) -> None:
        self.now = self.busy_cpu_s = self.policy_s = 0.0
        self.hidden, self.left, self.steps = False, 10_000, 100
        self.workers = [f"env-{index}" for index in range(number)]
        limits = SizeLimits(28, most, 16, 32)
        self.sizer = Sizer(number, limits, 1, lambda: self.now, lambda: None if self.hidden else self.busy_cpu_s)

    def round(self, load: Load, seconds: float = 10.0) -> Change | None:
        """Let every environment finish an episode under `load`."""
        self.now, self.policy_s = self.now + seconds, self.policy_s + load.policy_busy * seconds
        self.busy_cpu_s += 16 * seconds * (1 - load.idle)
        key = cast(TrialKey, None)
        wait_s = load.waiting * seconds
        episode = EncodedEpisode(key, "failure", self.steps, seconds, b"", None, utilisation=(seconds - wait_s, wait_s))
        changes = [self._finished(worker, episode) for worker in list(self.workers)]
        return next((change for change in changes if change is not None), None)

    def rounds(self, load: Load) -> Change | None:
        """Let a whole decision come about: an episode to get going, and two that are measured."""
        assert self.round(load) is None and self.round(load) is None
        return self.round(load)

    def _finished(self, worker: str, episode: EncodedEpisode) -> Change | None:
        change = self.sizer.finished(worker, self.workers, episode, self.policy_s, self.left)
        if change is not None:
            more = [f"env-{index}" for index in range(len(self.workers), change.number)]
            self.workers = [*self.workers, *more][: change.number]
        return change


def test_a_run_grows_while_that_brings_episodes_and_a_few_times_at_most() -> None:
    machine = Machine(16)
    assert machine.rounds(LAZY) == Change(
        20,
        16,
        "they wait 60% of their time for the policy, which could answer more at once, and 50% of the cores idle",
    )
    found = [machine.rounds(LAZY) for _ in range(4)]
    assert [change and change.number for change in found] == [25, 32, None, None], "20 and 25 brought a quarter more"


def test_growth_that_brings_nothing_is_taken_back_once_and_for_all() -> None:
    machine = Machine(16)
    assert machine.rounds(LAZY) is not None
    machine.steps = 80  # 20 environments are as fast as 16 were
    assert machine.rounds(LAZY) == Change(16, 20, "20 made 160 instead of 160 control steps a second")
    machine.steps = 100
    assert [machine.rounds(LAZY) for _ in range(3)] == [None] * 3
    assert machine.sizer.number == 16


def test_the_last_growth_is_taken_back_like_the_first_also_in_the_tail() -> None:
    machine = Machine(16)
    assert [machine.rounds(LAZY) is not None for _ in range(3)] == [True] * 3
    machine.steps, machine.left = 70, 33
    found = machine.rounds(LAZY)
    assert found is not None and (found.before, found.number) == (32, 25)
    assert [machine.rounds(LAZY) for _ in range(2)] == [None] * 2


def test_fewer_are_kept_only_if_they_are_as_fast() -> None:
    machine = Machine(44)
    assert machine.rounds(CROWDED) is not None and machine.sizer.number == 35
    machine.steps = 126  # 35 environments make as many steps as 44 did
    assert machine.rounds(CROWDED) is not None and machine.sizer.number == 28
    machine.steps = 100
    found = machine.rounds(CROWDED)
    assert found is not None and (found.number, machine.sizer.number) == (35, 35)


@pytest.mark.parametrize("harm", ["the tail", "hidden CPUs", "a fixed limit"])
def test_nothing_changes_where_it_would_not_pay_or_nothing_is_known(harm: str) -> None:
    machine = Machine(16, most=16 if harm == "a fixed limit" else 88)
    machine.hidden, machine.left = harm == "hidden CPUs", 199 if harm == "the tail" else 10_000
    assert [machine.rounds(LAZY) for _ in range(3)] == [None] * 3
    machine = Machine(16)
    machine.left = 200  # ten for each of 20
    assert machine.rounds(LAZY) is not None


def test_a_worker_that_is_gone_is_not_waited_for_and_a_new_one_gets_going_first() -> None:
    machine = Machine(4)
    machine.sizer._limits = SizeLimits(1, 9, 16, 32)
    episode = EncodedEpisode(cast(TrialKey, None), "failure", 9, 1.0, b"", None)
    assert machine.sizer.finished("env-0", machine.workers, episode, 0.0, 999) is None
    gone = machine.workers.pop()
    machine.sizer.lost(gone)
    assert machine.round(LAZY) is None
    assert machine.sizer._round == 1
    assert machine.round(LAZY) is None and machine.sizer._round == 1, "one is missing, so nothing is measured"
    machine.workers.append("env-9")
    assert machine.round(LAZY) is None and machine.round(LAZY) is not None


HOST = ActorHost("here", 1, None, {})


class Stage:
    """Pools, queue of events and run folder in one; its env actors finish in the order in which they got trials."""

    busy_s = 0.0
    starting = 0

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes: list[int] = []  # at every start and end of an env actor
        self.rows: list[TrialKey] = []
        self.replicas_ready = self._started = 0
        self._events = deque[Event]([PolicyReady(0, HOST, 1.0), PolicyHashed({})])

    @property
    def size(self) -> int:
        return len(self.names)

    @property
    def empty(self) -> bool:
        return not self._events

    def next(self, _: float) -> Event | None:
        return self._events.popleft() if self._events else None

    def check(self) -> None: ...

    def start(self) -> None:
        self.names.append(f"env-{self._started}")
        self._events.append(EnvReady(self.names[-1], HOST))
        self._started += 1
        self.sizes.append(self.size)

    def retire(self, name: str) -> None:
        self.names.remove(name)
        self.sizes.append(self.size)

    def submit(self, assignment: Assignment) -> None:
        assert assignment.worker in self.names
        episode = EncodedEpisode(assignment.trial.key, "failure", 9, 1.0, b"", None)
        self._events.append(AttemptFinished(assignment, Attempt(episode)))

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        self.rows += [episode.key for episode in episodes]


class Scripted:
    """Sizer that asks for given numbers after given counts of episodes."""

    def __init__(self, changes: Mapping[int, tuple[int, int]]) -> None:
        self._changes, self._count, self.gone = changes, 0, list[str]()

    def finished(self, worker: str, workers: list[str], *_: object) -> Change | None:
        self._count += 1
        assert worker in workers
        found = self._changes.get(self._count)
        return None if found is None else Change(*found, "so it is")

    def lost(self, worker: str) -> None:
        self.gone.append(worker)


def test_the_driver_ends_idle_env_actors_only_and_starts_others_without_losing_a_trial() -> None:
    stage, sizer, noted = Stage(), Scripted({9: (2, 5), 30: (6, 2)}), list[int]()

    class Record(RunRecord):
        def add_environments(self, number: int, because: str) -> None:
            noted.append(number)

    tasks = fake_tasks()[:2]
    trials = [Trial(task, number, 0) for task in tasks for number in range(40)]
    listener = SimpleNamespace(on_episode=lambda *_: None, on_progress=lambda *_: None)
    config = Config(task_suite="fake")
    context, tally = (
        RunContext("run", config, b"key", spec=policy_spec(config)),
        Tally.planned([(t, 40) for t in tasks]),
    )
    pools: tuple[Any, Any, Any, Any] = (stage, stage, stage, stage)
    Driver(context, *pools, tally, cast(Any, listener), Record(), sizer=cast(Any, sizer)).run(Scheduler(trials, 3), 5)
    assert sorted(stage.rows) == sorted(trial.key for trial in trials)
    assert stage.sizes == [1, 2, 3, 4, 5, 4, 3, 2, 3, 4, 5, 6]
    assert len(sizer.gone) == 3 and not set(sizer.gone) & set(stage.names)
    assert noted == [2, 6]


class Loading(Stage):
    """Stage whose policy is ready when the eighth env actor starts, and answers nothing before."""

    def __init__(self) -> None:
        super().__init__()
        self._ready, self._events = self._events, deque[Event]()
        self._waiting: list[Assignment] = []
        self.together: list[int] = []  # env actors that were starting, after every start

    @property
    def starting(self) -> int:  # type: ignore[override]
        return sum(isinstance(event, EnvReady) for event in self._events)

    def start(self) -> None:
        super().start()
        self.together.append(self.starting)
        if len(self.together) == 8:
            self._events.extend(self._ready)
            for assignment in self._waiting:
                super().submit(assignment)

    def submit(self, assignment: Assignment) -> None:
        if len(self.together) < 8:
            self._waiting.append(assignment)
        else:
            super().submit(assignment)


def _first_starts(monkeypatch: pytest.MonkeyPatch, **ray: object) -> list[int]:
    monkeypatch.setattr("wpray.orchestration.driver.cores", lambda: 6)
    monkeypatch.setattr("wpray.orchestration.driver.env_actors_that_fit", lambda _: 20)
    config, stage = Config.model_validate({"task_suite": "fake", "ray": ray}), Loading()
    task = fake_tasks()[0]
    listener = SimpleNamespace(on_episode=lambda *_: None, on_progress=lambda *_: None)
    pools: tuple[Any, Any, Any, Any] = (stage, stage, stage, stage)
    context = RunContext("run", config, b"key", spec=policy_spec(config))
    driver = Driver(context, *pools, Tally.planned([(task, 40)]), cast(Any, listener), RunRecord())
    driver.run(Scheduler([Trial(task, number, 0) for number in range(40)], 3), 20)
    return stage.together


def test_env_actors_that_start_leave_cores_to_a_policy_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _first_starts(monkeypatch) == [1, 2, 3, 4, 1, 2, 3, 4, *range(1, 13)]


def test_a_clusters_env_actors_all_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _first_starts(monkeypatch, address="auto") == [*range(1, 21)]


def test_env_actors_beyond_the_cpus_reserve_none(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[float] = []

    class Kind:
        @staticmethod
        def options(num_cpus: float, **_: object) -> Any:
            reserved.append(num_cpus)
            call = SimpleNamespace(remote=lambda *_: SimpleNamespace(future=Future[Any]))
            return SimpleNamespace(remote=lambda *_: SimpleNamespace(health=call, start=call))

    monkeypatch.setattr("ray.kill", lambda *_, **__: None)
    config = Config(task_suite="fake")
    pool = EnvActorPool(RunContext("run", config, b"key", spec=policy_spec(config)), [], EventQueue())
    pool.kind, pool.most_reserving = Kind, 2
    for _ in range(4):
        pool.start()
    pool.retire("env-1")
    pool.start()
    assert reserved == [1, 1, 0, 0, 1], "the one that took the place of the second reserves, too"
    assert pool.names == ["env-0", "env-2", "env-3", "env-4"]


RUN = ("--task_suite", "fake", "--policy", "tests.faults.policies.slow", "--video.mode", "none", "--tasks", "0,1")
RUN += ("--num_trials_per_task", "13", "--env.max_steps", "40")


@pytest.fixture
def idle_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cores that never have anything to do, whatever else this machine is doing."""
    busy = Sizer.__init__.__defaults__
    assert busy is not None
    monkeypatch.setattr(Sizer.__init__, "__defaults__", (busy[0], lambda: 0.0))
    return


@pytest.mark.ray
@pytest.mark.usefixtures("idle_cores")
def test_a_run_with_a_slow_policy_gets_more_environments_and_the_same_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wpray.policies.environments.cores", lambda: 1)
    keep_a_trial_for_each(monkeypatch, 2)
    config = read_config([*RUN, "--output_dir", str(tmp_path)])
    assert evaluate(config) == 0
    found = load(tmp_path).episodes
    monkeypatch.setattr(slow, "PAUSE_S", 0.0)
    policy = LocalPolicyClient(slow.build(config))
    for row in found.to_pylist():
        trial = Trial(fake_tasks(40)[row["task_id"]], row["trial"], config.seed)
        alone = run_trial(FakeEnvironment(), policy, trial, rollout_settings(config))
        assert (alone.success, alone.num_steps, alone.num_segments) == (
            *(row[name] for name in ("success", "num_steps", "num_segments")),
        )
    sizes = read_json(tmp_path / "run.json")["sessions"][0]["environments"]
    assert [size["number"] for size in sizes][:2] == [1, 2]
    assert sizes[0]["because"] == "policy slow computes on the cores, too" and "wait" in sizes[1]["because"]
    assert "environments: 2 instead of 1, because they wait" in (tmp_path / "run.log").read_text()
    assert len(set(found["worker"].to_pylist())) == 2
