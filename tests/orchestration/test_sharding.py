"""Trials spread over workers, retried and resumed in any way: the same tables and the same trajectory bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestration.shared_trials import keep_a_trial_for_each
from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.cli.configuration import read_config
from wpray.config import Config
from wpray.orchestration.scheduler import Assignment, Scheduler
from wpray.policies.base import PolicyClient
from wpray.policies.factory import build_policy
from wpray.policies.local import LocalPolicyClient
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error
from wpray.results.merge import merge
from wpray.results.schema import DECISION_SCHEMA, OUTCOME_COLUMNS
from wpray.results.writer import RunFolder
from wpray.rollout import RolloutSettings, run_trial
from wpray.run.evaluation import evaluate
from wpray.trials import make_trials, remaining
from wpray.types import Failure, Trial

ROOT = Path(__file__).parents[2]
NOT_OUTCOME = {"run_id", "asked_s", "wait_s", "queue_s", "compute_s", "batch_size"}
DECISION_OUTCOMES = [name for name in DECISION_SCHEMA.names if name not in NOT_OUTCOME]


@dataclass(frozen=True)
class Results:
    """Content of a folder that must not depend on how it was made."""

    episodes: pa.Table
    decisions: pa.Table
    trajectories: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> Results:
        files = sorted((folder / "trajectories").glob("*.parquet"))
        return cls(
            pq.read_table(folder / "episodes.parquet", columns=list(OUTCOME_COLUMNS)),
            pq.read_table(folder / "decisions.parquet", columns=DECISION_OUTCOMES),
            {path.name: path.read_bytes() for path in files},
        )

    def assert_equal(self, other: Results) -> None:
        assert self.episodes.equals(other.episodes)
        assert self.decisions.equals(other.decisions)
        assert self.trajectories == other.trajectories


class InterruptedAttemptError(RuntimeError):
    """Error that ends an attempt."""


class Workers:
    """Simulated env actors; each keeps its used environment from attempt to attempt."""

    def __init__(self, folder: RunFolder, policy: PolicyClient, count: int) -> None:
        self._folder, self._policy = folder, policy
        self._envs = {f"env-{number}": make_environment("fake", "wpray") for number in range(count)}
        self.names = list(self._envs)

    def run(self, assignment: Assignment, fails_at: int | None) -> bool:
        """Run an attempt, up to step `fails_at`; write its row if it has one."""

        def interrupt(step: int) -> None:
            if step == fails_at:
                raise InterruptedAttemptError

        settings = RolloutSettings(num_steps_wait=3, on_step=interrupt)
        try:
            result = run_trial(self._envs[assignment.worker], self._policy, assignment.trial, settings)
        except InterruptedAttemptError:
            return False
        self._folder.write_episodes(encode_episode(result, _context(assignment), "full"))
        return True

    def give_up(self, assignment: Assignment) -> None:
        self._folder.write_episodes(_error(assignment))


def _context(assignment: Assignment) -> EpisodeContext:
    now = datetime.now(UTC)
    return EpisodeContext("run", "scripted", None, "wpray", "host", assignment.worker, assignment.attempt, now, now)


def _error(assignment: Assignment) -> EncodedEpisode:
    return encode_error(
        assignment.trial, _context(assignment), Failure("environment", "Interrupted", "again and again")
    )


def _evaluate(path: Path, trials: Sequence[Trial], policy: PolicyClient, data: st.DataObject) -> Results:
    """Drive the scheduler as the driver does; every random choice is drawn from `data`."""
    folder = RunFolder(path)
    folder.open()
    todo: Sequence[Trial] = data.draw(st.permutations(trials))
    while todo:
        workers = Workers(folder, policy, data.draw(st.integers(1, 4)))
        stops_after = data.draw(st.integers(1, len(todo)))
        _run_until_stopped(Scheduler(todo, max_attempts=2), workers, stops_after, data)
        todo = remaining(trials, folder.finished())
    merge(folder)
    folder.close()
    return Results.read(path)


def _run_until_stopped(scheduler: Scheduler, workers: Workers, stops_after: int, data: st.DataObject) -> None:
    while not scheduler.finished:
        worker = data.draw(st.sampled_from(workers.names))
        assignment = scheduler.running.get(worker) or scheduler.next_for(worker)
        if assignment is None or data.draw(st.booleans()):
            continue  # it stays in hand while others begin
        fails_at = data.draw(st.one_of(st.none(), st.none(), st.integers(1, 40)))
        if workers.run(assignment, fails_at):
            scheduler.done(assignment)
            stops_after -= 1
        elif not scheduler.failed(assignment):
            workers.give_up(assignment)
        if stops_after == 0:
            scheduler.stop_taking()


@pytest.mark.parametrize("policy_name", ["scripted", "random"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_two_shardings_give_identical_tables_and_trajectories(policy_name: str, data: st.DataObject) -> None:
    policy = LocalPolicyClient(build_policy(Config(policy=policy_name, task_suite="fake")))
    trials = make_trials(list_tasks("fake", max_steps=90)[:2], num_trials=3, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_evaluate(Path(folder, name), trials, policy, data) for name in "ab")
    assert len(first.episodes) == len(first.trajectories) == len(trials)
    assert any(first.episodes["success"].to_pylist()) or policy_name == "random"
    first.assert_equal(second)


@pytest.mark.ray
def test_one_and_three_env_actors_give_identical_tables_and_trajectories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = subprocess.Popen(  # at the same time: a run must not be affected by another on the same machine
        [sys.executable, "-m", "wpray.launch", *_arguments(tmp_path / "1", 1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    keep_a_trial_for_each(monkeypatch, 3)
    assert evaluate(read_config(_arguments(tmp_path / "3", 3))) == 0
    output, _ = one.communicate(timeout=180)
    assert one.returncode == 0, output
    results = Results.read(tmp_path / "1")
    results.assert_equal(Results.read(tmp_path / "3"))
    assert len(results.trajectories) == len(results.episodes) == 20
    workers = pq.read_table(tmp_path / "3" / "episodes.parquet", columns=["worker"])["worker"].unique()
    assert set(workers.to_pylist()) == {"env-0", "env-1", "env-2"}


def _arguments(folder: Path, num_env_actors: int) -> list[str]:
    argv = ["--task_suite", "fake", "--policy", "random", "--num_trials_per_task", "2", "--output_dir", str(folder)]
    return [*argv, "--video.mode", "none", "--ray.num_env_actors", str(num_env_actors)]
