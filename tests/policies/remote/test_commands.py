"""The commands of the root README that ask servers: each reaches a server of its protocol and gets actions."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import chunk_request
from tests.policies.remote.servers import gr00t_server, http_server, openpi_server, vla_eval_server
from wpray.cli.configuration import read_config
from wpray.policies.factory import build_policy, policy_checks

README = (Path(__file__).parents[3] / "README.md").read_text()
COMMANDS = dict(re.findall(r"`python -m wpray\.launch (--policy (\w+) --policy_args\.url [^`]+)`", README))
SERVERS = {policy: command for command, policy in COMMANDS.items()}
CHUNK = np.tile([0.0] * 6 + [1.0], (8, 1))
PARTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@contextlib.contextmanager
def _server(policy: str) -> Iterator[str]:
    def starvla(question: Mapping[str, Any]) -> dict[str, Any]:
        return {"ok": True, "data": {"actions": np.tile(CHUNK, (len(question["examples"]), 1, 1))}}

    def gr00t(data: Mapping[str, Any]) -> Any:
        return [{f"action.{part}": CHUNK[np.newaxis, :, [index]] for index, part in enumerate(PARTS)}, {}]

    def vla_eval(count: int, payload: Mapping[str, Any]) -> Any:
        return {"type": "action", "payload": {"actions": CHUNK[0]}}

    if policy == "openvla_oft":
        with http_server(lambda question: list(CHUNK)) as (url, _):
            yield url
        return
    servers = {
        "openpi": lambda: openpi_server(lambda question: {"actions": CHUNK}),
        "starvla": lambda: openpi_server(starvla),
        "gr00t": lambda: gr00t_server(gr00t),
        "vla_eval": lambda: vla_eval_server({}, vla_eval),
    }
    with servers[policy]() as url:
        yield url


@pytest.mark.parametrize("policy", ["openpi", "vla_eval", "openvla_oft", "gr00t", "starvla"])
def test_the_command_reaches_a_server_of_the_protocol(policy: str) -> None:
    given = shlex.split(SERVERS[policy])
    with _server(policy) as url:
        assert given[-1].partition("://")[0] == url.partition("://")[0]
        config = read_config([*given[:-1], url, "--task_suite", "fake"])
        (check,) = policy_checks(config)
        (found,) = check.check()
    steps = {"openpi": 5, "vla_eval": 1}.get(policy, 8)
    assert found.status == "pass" and f"{url}: {steps} action" in found.text


_CLASS = """
class Policy:
    def predict(self, requests):
        return [[[0.0] * 7] * 4 for _ in requests]
"""


def test_the_command_for_another_python_runs_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (given,) = re.findall(r"`python -m wpray\.launch (--policy process [^`]+)`", README)
    (tmp_path / "my_policy.py").write_text(_CLASS)
    monkeypatch.chdir(tmp_path)
    argv = shlex.split(given.replace("/venv/bin/python", sys.executable))
    policy: Any = build_policy(read_config([*argv, "--task_suite", "fake"]))
    (reply,) = policy.predict([chunk_request(policy.spec)])
    policy.close()
    assert reply.actions.shape == (4, 7)
