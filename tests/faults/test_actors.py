"""Actors that die or hang, at random moments: their trials run elsewhere, and the table does not show it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSEGV, SIGSTOP

import pytest

from tests.faults import runs
from tests.faults.conftest import FAKE, Record
from tests.faults.runs import ENV, POLICY, RENDER

pytestmark = pytest.mark.faults

ATTEMPTS = ("--retry.max_attempts", "100")  # a trial that is tried again comes first, so that it is hit again
MANY = 44  # environments: of a request that is asked again, 43 others are, too
KILLED = [(ENV, SIGKILL)] * 14 + [(ENV, SIGSEGV)] * 8
FROZEN = [(POLICY, SIGSTOP), (ENV, SIGSTOP), (ENV, SIGSTOP), (POLICY, SIGSTOP), (ENV, SIGSTOP), (ENV, SIGSTOP)]
REMOTE = ("--env.render", "remote")  # the undisturbed run's environments draw by themselves
# name, (actor, signal), seconds between two, options
STORMS = [
    ("env actor: kill -9, segmentation fault", KILLED, (0.1, 0.9), ()),
    ("env or policy actor: hangs (SIGSTOP)", FROZEN, (0.1, 1.5), ("--retry.stall_s", "4")),
    ("policy actor: kill -9", [(POLICY, SIGKILL)] * 8, (0.2, 3.0), ()),
    ("render actor: kill -9", [(RENDER, SIGKILL)] * 6, (0.2, 3.0), REMOTE),
    ("render actor: hangs (SIGSTOP)", [(RENDER, SIGSTOP)] * 2, (0.2, 1.5), (*REMOTE, "--retry.stall_s", "4")),
]


@pytest.mark.parametrize(("fault", "faults", "pause_s", "options"), STORMS, ids=[storm[0] for storm in STORMS])
def test_a_lost_actor_costs_nothing_but_time(
    fault: str,
    faults: list[tuple[str, int]],
    pause_s: tuple[float, float],
    options: tuple[str, ...],
    tmp_path: Path,
    reference: Callable[..., Path],
    survived: Record,
) -> None:
    undisturbed = reference(*FAKE)
    with runs.launched(tmp_path / "run", *FAKE, *ATTEMPTS, *options) as run:
        done = runs.harm_repeatedly(run, random.Random(fault), faults, pause_s)
        assert run.end() == 0, run.text[-3000:]
    assert done == len(faults), "the run was over before all faults were injected"
    runs.assert_same(run.folder, undisturbed)
    survived(fault, done)


def test_a_policy_actor_that_dies_keeps_none_of_many_environments_waiting(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    """Every request in hand is asked again, more of them than a batch holds, so that each is answered in its turn."""
    trials = ("--num_trials_per_task", "20")
    undisturbed = reference(*trials, "--num_parallel", "8")
    with runs.launched(tmp_path / "run", *trials, "--num_parallel", str(MANY), "--retry.stall_s", "600") as run:
        for _ in range(3):
            _answer_until(run, run.finished_trials + 1)
            _kill_a_policy_that_all_ask(run)
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived(f"policy actor killed with {MANY} environments", 3)


def _kill_a_policy_that_all_ask(run: runs.Run) -> None:
    """Freezes it until every environment has a trial in hand, lets it answer for a moment, and kills it."""
    rng = random.Random(0)
    assert run.wait_for(lambda: runs.harm(run, rng, POLICY, SIGSTOP)), run.text[-3000:]
    assert run.wait_for(lambda: len(run.actors(ENV, working=True)) == MANY, timeout_s=300), run.text[-3000:]
    assert runs.harm(run, rng, POLICY, SIGCONT)
    _answer_until(run, run.finished_trials + 10)
    assert runs.harm(run, rng, POLICY, SIGKILL)


def _answer_until(run: runs.Run, finished: int) -> None:
    assert run.wait_for(lambda: run.finished_trials >= finished) and run.alive, run.text[-3000:]


def test_everything_at_once(tmp_path: Path, reference: Callable[..., Path], survived: Record) -> None:
    undisturbed = reference(*FAKE)
    rng = random.Random(7)
    kinds = [(ENV, SIGKILL)] * 8 + [(ENV, SIGSEGV)] * 4 + [(POLICY, SIGKILL)] * 4 + [(ENV, SIGSTOP)] * 2
    kinds += [(RENDER, SIGKILL)] * 4
    rng.shuffle(kinds)
    with runs.launched(
        tmp_path / "run", *FAKE, *ATTEMPTS, *REMOTE, "--retry.stall_s", "5", "--ray.num_policy_actors", "2"
    ) as run:
        done = runs.harm_repeatedly(run, rng, kinds, (0.1, 1.0))
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived("env, policy and render actors mixed, two replicas", done)
