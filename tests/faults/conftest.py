"""Counts the faults that the tests inject, and prints what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import runs

WORKERS = ("--num_parallel", "3")
FAKE = ("--num_trials_per_task", "10", *WORKERS)  # 100 episodes
SHORT = ("--tasks", "0-3", "--num_trials_per_task", "8", *WORKERS)  # 32 episodes


@dataclass
class Record:
    """Faults by name, in the order in which they were first injected."""

    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __call__(self, fault: str, times: int, outcome: str = "same table") -> None:
        """Notes faults that were survived: call it once the outcome is asserted."""
        self.faults[fault] = (self.faults.get(fault, (0, ""))[0] + times, outcome)


_RECORD = pytest.StashKey[Record]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RECORD] = Record()


@pytest.fixture(scope="session")
def survived(pytestconfig: pytest.Config) -> Record:
    return pytestconfig.stash[_RECORD]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Undisturbed runs by their options, each run once."""
    known: dict[tuple[str, ...], Path] = {}

    def get(*options: str, policy: str = runs.SLOW, suite: str = "fake") -> Path:
        key = (*options, policy, suite)
        if key not in known:
            folder = tmp_path_factory.mktemp("reference") / "run"
            known[key] = runs.undisturbed(folder, *options, policy=policy, suite=suite)
        return known[key]

    return get


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    faults = config.stash[_RECORD].faults
    if not faults:
        return
    terminalreporter.section("faults injected")
    width = max(map(len, faults))
    terminalreporter.write_line(f"{'fault':{width}} | times injected | outcome")
    for name, (times, outcome) in faults.items():
        terminalreporter.write_line(f"{name:{width}} | {times:14d} | {outcome}")
    terminalreporter.write_line(f"{'all':{width}} | {sum(times for times, _ in faults.values()):14d} |")
