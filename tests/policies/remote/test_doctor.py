"""The doctor's check of servers, and the plan and the times of a run that they answer."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import chunk_request
from tests.policies.remote.servers import openpi_server
from wpray.checks import CheckResult
from wpray.config import Config
from wpray.doctor.checks import everything
from wpray.policies.factory import policy_checks, policy_spec
from wpray.policies.relay import Relay
from wpray.policies.remote import doctor as module
from wpray.policies.remote.openpi import OpenpiPolicy, OpenpiSettings
from wpray.run.plan import show_plan


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    actions = np.zeros((10, 7))
    actions[:, 6] = np.linspace(-1, 1, 10)
    return {"actions": actions}


def _config(policy: str, *urls: str, **more: Any) -> Config:
    arguments = {"url": list(urls), **more}
    return Config.model_validate({"task_suite": "fake", "policy": policy, "policy_args": arguments, "num_parallel": 8})


def _check(policy: str, *urls: str, **more: Any) -> list[CheckResult]:
    (check,) = policy_checks(_config(policy, *urls, **more))
    assert check.name == "servers" and not check.quick and not check.local
    return list(check.check())


def test_each_server_is_asked_and_timed() -> None:
    with openpi_server(_answer, {"checkpoint": "pi05_libero"}) as one, openpi_server(_answer) as two:
        first, second = _check("openpi", one, two, replan_steps=5)
    assert (first.status, second.status) == ("pass", "pass")
    text = r": 5 actions in \d+ ms \(at first \d+\), gripper -1 to -0\.11; it says of itself .*pi05_libero"
    assert re.match(re.escape(one) + text, first.text)
    assert second.text.startswith(two)


@pytest.mark.parametrize(
    ("policy", "url"),
    [
        ("openpi", "ws://127.0.0.1:9"),
        ("vla_eval", "ws://127.0.0.1:9"),
        ("starvla", "ws://127.0.0.1:9"),
        ("openvla_oft", "http://127.0.0.1:9"),
        ("gr00t", "tcp://127.0.0.1:9"),
    ],
)
def test_a_server_that_is_not_there_fails_the_check_and_is_not_waited_for(
    policy: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)  # ZeroMQ has no refusal, only no answer
    (found,) = _check(policy, url)
    assert found.status == "fail" and f"{url} does not answer (" in found.text
    assert found.text.endswith("start the server, or check policy_args")


def test_what_a_server_answers_wrongly_fails_the_check() -> None:
    def hang_up(question: Mapping[str, Any]) -> Any:
        raise ConnectionAbortedError

    answers = {
        "shape": lambda question: {"actions": np.zeros((5, 32))},
        "KeyError": lambda question: "KeyError: 'image'",
    }
    for reason, answer in {**answers, "does not answer": hang_up}.items():
        with openpi_server(answer) as url:
            (found,) = _check("openpi", url)
        assert found.status == "fail" and url in found.text and reason in found.text


def test_the_doctor_makes_the_check() -> None:
    with openpi_server(_answer) as url:
        found = next(result for result in everything(_config("openpi", url), deep=False) if result.name == "servers")
    assert found.status == "pass" and found.text.startswith(f"{url}: 5 actions in")


def test_the_plan_counts_servers(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(_config("openpi", "ws://a:1", "ws://b:1"))
    two = capsys.readouterr().out
    assert "2 servers" in two and "bottleneck  policy" in two and "answer one request at a time" in two
    show_plan(_config("openpi", "ws://a:1", "ws://b:1", connections=3))
    assert "6 servers" in capsys.readouterr().out
    show_plan(_config("openpi", "ws://a:1", connections=400).model_copy(update={"num_parallel": None}))
    assert "because they wait for the answers of policy openpi." in capsys.readouterr().out
    assert policy_spec(_config("vla_eval", "ws://a:1")).servers == 1


def test_the_wait_for_a_free_server_is_no_computation() -> None:
    """Else a plan made of such a run would take its servers to be as slow as they were crowded."""
    asked, go_on = threading.Semaphore(0), threading.Event()

    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        asked.release()
        assert go_on.wait(20)
        return _answer(question)

    with openpi_server(infer) as url, ThreadPoolExecutor(2) as threads:
        policy = OpenpiPolicy(OpenpiSettings(url=url))
        relay = Relay(policy)
        first = threads.submit(relay.predict, chunk_request(policy.spec, 0))
        assert asked.acquire(timeout=20)
        second = threads.submit(relay.predict, chunk_request(policy.spec, 1))
        while not policy._pool._waiters:
            time.sleep(0.01)
        go_on.set()
        early, late = first.result(20).timing, second.result(20).timing
        policy.close()
    assert early.queue_s < early.compute_s and late.compute_s > 0
    assert late.queue_s > 0 and late.batch_size == 1
