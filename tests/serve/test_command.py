"""`python -m wpray.serve`: a tiny Waypoint VLA behind it runs the episodes that it runs in a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.cli.configuration import read_config
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy
from wpray.policies.local import LocalPolicyClient
from wpray.policies.remote.openpi import OpenpiPolicy, OpenpiSettings
from wpray.rollout import run_trial
from wpray.serve.__main__ import main
from wpray.types import Trial


@contextmanager
def _command(*arguments: str) -> Iterator[str]:
    """Yield the URL of a server that the command has started; it must end by Ctrl-C."""
    command = [sys.executable, "-m", "wpray", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"serving \w+ at (ws://127\.0\.0\.1:\d+)", line)
            if found:
                break
        else:
            pytest.fail("".join(lines))
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()


def test_a_tiny_waypoint_vla_runs_the_same_episodes_behind_a_server(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from wpray.models import synthetic

    synthetic.write(tmp_path, "tiny", "float32")
    config = ["--config", str(tmp_path / "config.yaml"), "--task_suite", "fake", "--torch_compile", "false"]
    local = LocalPolicyClient(build_policy(read_config(config)))
    trials = [Trial(fake_tasks(40)[index], index, 7) for index in range(2)]
    expected = [run_trial(FakeEnvironment(), local, trial) for trial in trials]
    with _command(*config) as url:
        remote = OpenpiPolicy(OpenpiSettings(url=url))
        found = [run_trial(FakeEnvironment(), LocalPolicyClient(remote), trial) for trial in trials]
        facts = remote.facts[url]
        remote.close()
    for here, there in zip(expected, found, strict=True):
        assert np.array_equal(here.trajectory.actions, there.trajectory.actions)
        assert (here.success, here.num_steps) == (there.success, there.num_steps)
    assert facts["planner_mode"] == "waypoints" and facts["checkpoint"] == str(tmp_path / "vlm")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--policy", "scripted"], "scripted sees simulator truth, which no client sends"),
        (["--policy", "noop", "--token_env", "NOT_SET_ANYWHERE"], "environment variable NOT_SET_ANYWHERE is not set"),
        (["--policy", "noop", "--replan_on_deviation", "true"], "replan_on_deviation: noop has no space"),
        (["--policy", "noop", "--latency.extra_ms", "80"], r"latency\.extra_ms: .* leave it out"),
        (["--policy", "noop", "--strict_step_budget", "false"], "strict_step_budget: .* leave it out"),
        (["--policy", "noop", "--port", "99999"], "choose another"),
        (["--policy", "nope"], "unknown policy"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        main(arguments)
