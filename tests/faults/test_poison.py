"""Trials that do harm every time they run, and policies that fail: who is at fault gets a row that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import runs
from tests.faults.conftest import SHORT, WORKERS, Record
from tests.faults.policies import particular, poison

pytestmark = pytest.mark.faults
POISON, SICK = "tests.faults.policies.poison", "tests.faults.policies.sick"
PARTICULAR = "tests.faults.policies.particular"


def test_a_trial_that_kills_its_actors_becomes_a_row_and_harms_no_other(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    # Three of 32 trials are guilty: by default the third would stop the run, with others perhaps still to come.
    options = ("--retry.stall_s", "4", "--retry.max_error_share", "0.2")
    with runs.launched(tmp_path / "run", *SHORT, *options, policy=POISON) as run:
        assert run.end() == 1, run.text[-3000:]
    guilty = [(poison.KILLS_ENV, 0), (poison.FREEZES_ENV, 0), (poison.KILLS_POLICY, 0)]
    runs.assert_same(run.folder, undisturbed, but=guilty)
    errors = runs.errors(run.folder)
    assert sorted(errors) == guilty
    assert "the env actor died in attempt 3" in errors[guilty[0]][1]
    assert "retry.stall_s" in errors[guilty[1]][1]
    assert errors[guilty[2]][0] == "PolicyDiedError"
    survived("trial that kills or freezes its env actor each time", 6, "its error row, others same")
    survived("trial that kills the policy actor each time", 3, "its error row, others same")


def test_a_policy_that_raises_again_on_a_fresh_actor_stops_the_run(tmp_path: Path, survived: Record) -> None:
    tasks = ("--tasks", str(poison.RAISES), "--num_trials_per_task", "40", *WORKERS)
    with runs.launched(tmp_path / "run", *tasks, policy=POISON) as run:
        assert run.end() == 1, run.text[-3000:]
    assert "stopped: the policy fails again and again: FloatingPointError: not a number" in run.text
    assert list(runs.errors(run.folder)) == [(poison.RAISES, 0)]
    assert len(runs.outcomes(run.folder)) < 40
    survived("policy exception that repeats", 2, "stops at once, rows kept")


def test_an_invalid_request_is_an_error_row_at_once_and_restarts_nothing(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    with runs.launched(tmp_path / "run", *SHORT, policy=PARTICULAR) as run:
        assert run.end() == 1, run.text[-3000:]
    refused = [(particular.NOT_PREPARED, 0), (particular.NOT_ANSWERED, 0)]
    runs.assert_same(run.folder, undisturbed, but=refused)
    errors = runs.errors(run.folder)
    assert sorted(errors) == refused
    for kind, message in errors.values():
        assert kind == "InvalidRequestError" and message.startswith("the prompt has 65 tokens\n")
    assert run.text.count("policy-0 loaded") == 1
    assert run.text.count("attempt 1: InvalidRequestError") == 2 and "attempt 2" not in run.text
    survived("request that the policy refuses", 2, "its error row at once, others same")


def test_systematic_errors_stop_the_run_naming_the_most_frequent(tmp_path: Path, survived: Record) -> None:
    tasks = ("--tasks", "0,5-9", "--num_trials_per_task", "40", *WORKERS)
    with runs.launched(tmp_path / "run", *tasks, "--retry.max_attempts", "1", policy=POISON) as run:
        assert run.end() == 1, run.text[-3000:]
    last = run.text.strip().splitlines()[-1]
    assert last.startswith("stopped: 3 of ") and "ValueError: invalid literal for int()" in last
    assert 3 <= len(runs.errors(run.folder)) <= 3 + 3  # those in hand are finished
    survived("env exception on every trial", len(runs.errors(run.folder)), "stop rule, rows kept")


def test_out_of_memory_halves_the_batch_and_a_sick_process_is_replaced(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*SHORT)
    marks = tmp_path / "marks"
    marks.mkdir()
    options = ("--retry.max_attempts", "100", "--batching.max_wait_ms", "20")
    with runs.launched(tmp_path / "run", *SHORT, *options, policy=SICK, SICK_FOLDER=str(marks)) as run:
        for number in range(3):
            assert run.wait_for(lambda number=number: run.finished_trials > 6 * (number + 1))
            (marks / f"sick-{number}").touch()
            assert run.wait_for(lambda: not list(marks.glob("sick-*")))
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    raised = (marks / "raised").read_text()
    memory = raised.count("out of memory")
    assert memory >= 3
    survived("CUDA out of memory in a batch (raised by the test)", memory)
    survived("policy process that fails every request", 3)
