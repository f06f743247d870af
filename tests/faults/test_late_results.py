"""A result that comes after its attempt was given up is dropped: one row a trial, by whoever holds it last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wpray.benchmarks.fake.environment import fake_tasks
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration.actors import ActorHost, Attempt, RunContext
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.events import (
    ActorFailure,
    AttemptFinished,
    EnvLost,
    EnvReady,
    Event,
    PolicyHashed,
    PolicyReady,
)
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.policies.factory import policy_spec
from wpray.results.encode import EncodedEpisode
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.run.output import RunInfo
from wpray.transport.policy_connection import POLICY_DIED
from wpray.types import Failure, Trial

TASK = fake_tasks()[0]
TRIAL = Trial(TASK, 0, 0)
HOST = ActorHost("here", 1, None, {})


@dataclass
class Stage:
    """Plays the actors: says its events in order, notes what the driver asks for."""

    script: list[Event]
    size: int = 0
    starting = 0
    busy_s: float = 0.0
    replicas_ready: int = 0
    restarted: list[int] = field(default_factory=list)
    submitted: list[Assignment] = field(default_factory=list)
    written: list[EncodedEpisode] = field(default_factory=list)

    empty = True  # one event at a time

    def check(self) -> None:
        pass

    def next(self, _: float) -> Event:
        return self.script.pop(0)

    def start(self) -> None:
        self.size += 1

    def submit(self, assignment: Assignment) -> None:
        self.submitted.append(assignment)

    def retire(self, name: str) -> None:
        self.size -= 1

    def restart(self, number: int) -> None:
        self.restarted.append(number)

    def write_episodes(self, *episodes: EncodedEpisode) -> None:
        self.written += episodes


class Record(RunRecord):
    """Calls `note_files` with the digests of the policy's files."""

    def __init__(self, note_files: Callable[[dict[str, str]], None], knows_files: bool) -> None:
        self._note_files, self._knows_files = note_files, knows_files

    @property
    def knows_files(self) -> bool:
        return self._knows_files

    def add_files(self, hashes: Mapping[str, str]) -> None:
        self._note_files(dict(hashes))


def _play(
    script: Sequence[Event],
    trials: Sequence[Trial] = (TRIAL,),
    workers: int = 1,
    note_files: Callable[[Stage, dict[str, str]], None] | None = None,
    verify: bool = True,
    kind: type[Stage] = Stage,
) -> tuple[Stage, Driver]:
    stage = kind([*script])
    listener = SimpleNamespace(on_episode=lambda *_: None, on_progress=lambda *_: None)
    tally = Tally.planned([(TASK, len(trials))])
    config = Config(task_suite="fake")
    context = RunContext("run", config, b"key", spec=policy_spec(config))
    folder, actors = cast(RunFolder, stage), cast(tuple[Any, Any, Any], (stage, stage, stage))
    verify = verify and note_files is not None
    note = partial(note_files, stage) if note_files else lambda _: None
    driver = Driver(context, *actors, folder, tally, cast(Any, listener), Record(note, verify))
    driver.run(Scheduler(trials, max_attempts=3), workers)
    return stage, driver


def _episode(trial: Trial = TRIAL, error: str | None = None) -> EncodedEpisode:
    return EncodedEpisode(trial.key, "error" if error else "success", 9, 0.1, b"", None, error)


def _lost(worker: str) -> EnvLost:
    return EnvLost(worker, ActorFailure("hung", bad_input=False), started=True)


POLICY = [PolicyReady(0, HOST, 0.0), PolicyHashed({})]


def test_a_late_result_is_dropped() -> None:
    old, new = Assignment(TRIAL, 1, "env-0"), Assignment(TRIAL, 2, "env-1")
    late = AttemptFinished(old, Attempt(_episode(error="late")))
    script = [*POLICY, EnvReady("env-0", HOST), _lost("env-0"), EnvReady("env-1", HOST), late]
    stage, _ = _play([*script, AttemptFinished(new, Attempt(good := _episode()))])
    assert stage.submitted == [old, new]
    assert stage.written == [good]


def test_a_trial_whose_actors_all_die_gets_one_row_with_the_reason() -> None:
    script: list[Event] = [*POLICY]
    for number in range(3):
        script += [EnvReady(f"env-{number}", HOST), _lost(f"env-{number}")]
    stage, _ = _play(script)
    assert [episode.status for episode in stage.written] == ["error"]
    assert "attempt 3: hung" in (stage.written[0].error or "")


def test_one_sick_policy_process_is_replaced_once_and_stops_nothing() -> None:
    """Its requests in hand all fail with it: that is no repetition on a fresh actor."""
    trials = [Trial(TASK, number, 0) for number in range(3)]
    workers = [f"env-{number}" for number in range(3)]
    script: list[Event] = [*POLICY, *(EnvReady(worker, HOST) for worker in workers)]
    script += [_failed(Assignment(trials[n], 1, workers[n]), "sick") for n in range(3)]
    script += [AttemptFinished(Assignment(trials[n], 2, workers[n]), Attempt(_episode(trials[n]))) for n in range(3)]
    stage, driver = _play(script, trials, workers=3)
    assert stage.restarted == [0]
    assert driver.stop is None
    assert sorted(episode.key for episode in stage.written) == [trial.key for trial in trials]


def test_the_same_trial_failing_on_a_fresh_policy_stops_the_run() -> None:
    first, second = Assignment(TRIAL, 1, "env-0"), Assignment(TRIAL, 2, "env-0")
    script = [*POLICY, EnvReady("env-0", HOST), _failed(first, "one"), _failed(second, "two")]
    stage, driver = _play(script)
    assert driver.stop is not None and "again and again" in driver.stop.reason
    assert [episode.status for episode in stage.written] == ["error"]


def test_a_request_that_kills_the_policy_costs_its_own_trial_only() -> None:
    attempts = [Assignment(TRIAL, number, "env-0") for number in (1, 2, 3)]
    script = [
        *POLICY,
        EnvReady("env-0", HOST),
        *(_failed(a, f"incarnation {a.attempt}", POLICY_DIED) for a in attempts),
    ]
    stage, driver = _play(script)
    assert stage.restarted == [] and driver.stop is None
    assert [episode.status for episode in stage.written] == ["error"]


def _failed(assignment: Assignment, incarnation: str, kind: str = "RuntimeError") -> AttemptFinished:
    row = _episode(assignment.trial, error=f"{kind}: boom")
    return AttemptFinished(assignment, Attempt(row, Failure("policy", kind, "boom"), 0, incarnation))


def test_a_changed_checkpoint_is_found_before_a_trial_is_handed_out() -> None:
    """Results that an earlier checkpoint led to are not mixed with those of another in its place."""

    def refuse(stage: Stage, hashes: dict[str, str]) -> None:
        assert stage.submitted == []
        raise BadInputError(f"{hashes} has changed")

    with pytest.raises(BadInputError, match="has changed"):
        _play([PolicyReady(0, HOST, 0.0), EnvReady("env-0", HOST), PolicyHashed({"model": "other"})], note_files=refuse)


def test_the_same_checkpoint_goes_on_once_it_was_compared() -> None:
    done = AttemptFinished(Assignment(TRIAL, 1, "env-0"), Attempt(_episode()))
    script = [PolicyReady(0, HOST, 0.0), EnvReady("env-0", HOST), PolicyHashed({"model": "same"}), done]
    stage, _ = _play(script, note_files=lambda stage, hashes: None)
    assert len(stage.written) == 1


def test_what_the_policy_was_loaded_from_is_known_after_a_kill(tmp_path: Path) -> None:
    config, folder = Config(task_suite="fake"), RunFolder(tmp_path)
    info = RunInfo.read_or_new(config, folder, "run", {})
    assert not info.knows_files
    info.add_files({"model": "one", "statistics": "two"})
    again = RunInfo.read_or_new(config, folder, "run", {})
    assert again.knows_files
    again.add_files({"model": "one"})
    with pytest.raises(BadInputError, match="statistics has changed since the run"):
        again.add_files({"statistics": "three"})


def test_an_idle_env_actor_has_its_next_trial_before_the_disk_is_waited_for() -> None:
    trials = [Trial(TASK, number, 0) for number in range(40)]
    at_hand: list[int] = []  # trials handed out when rows were written

    class Slow(Stage):
        def write_episodes(self, *episodes: EncodedEpisode) -> None:
            at_hand.append(len(self.submitted))
            super().write_episodes(*episodes)

    done = [AttemptFinished(Assignment(trial, 1, "env-0"), Attempt(_episode(trial))) for trial in trials]
    stage, _ = _play([*POLICY, EnvReady("env-0", HOST), *done], trials, kind=Slow)
    assert [episode.key for episode in stage.written] == [trial.key for trial in trials]
    assert at_hand[0] > 1, "the first row was written before the second trial was handed out"
    assert len(at_hand) < len(trials), "rows that come together are written together"


def test_what_has_finished_is_kept_when_bad_input_ends_the_run() -> None:
    def refuse(_: Stage, hashes: dict[str, str]) -> None:
        raise BadInputError(f"{hashes} has changed")

    stages: list[Stage] = []

    class Kept(Stage):
        def __init__(self, script: list[Event]) -> None:
            super().__init__(script)
            stages.append(self)

    done = AttemptFinished(Assignment(TRIAL, 1, "env-0"), Attempt(good := _episode()))
    script = [PolicyReady(0, HOST, 0.0), EnvReady("env-0", HOST), done, PolicyHashed({"model": "other"})]
    with pytest.raises(BadInputError, match="has changed"):
        _play(script, (TRIAL, Trial(TASK, 1, 0)), note_files=refuse, verify=False, kind=Kept)
    assert stages[0].written == [good]


def test_an_invalid_request_has_its_error_row_at_once_and_blames_no_process() -> None:
    trials = [TRIAL, Trial(TASK, 1, 0)]
    first, second = (Assignment(trial, 1, "env-0") for trial in trials)
    invalid = AttemptFinished(
        first, Attempt(_episode(error="E"), Failure("request", "PromptTooLongError", "long"), 0, "incarnation")
    )
    script = [*POLICY, EnvReady("env-0", HOST), invalid, AttemptFinished(second, Attempt(_episode(trials[1])))]
    stage, driver = _play(script, trials)
    assert stage.submitted == [first, second], "neither tried again nor run by another env actor"
    assert stage.restarted == [] and driver.stop is None and stage.size == 1
    assert [episode.status for episode in stage.written] == ["error", "success"]
