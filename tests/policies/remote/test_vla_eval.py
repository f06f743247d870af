"""`policy: vla_eval` against the real package, and against a server that breaks off or means something else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import chunk_request
from tests.policies.remote.servers import own_python, server_process, vla_eval_server
from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.local import LocalPolicyClient
from wpray.policies.remote.vla_eval import VlaEvalPolicy, VlaEvalSettings
from wpray.rollout import run_trial
from wpray.types import Trial

PROGRAM = Path(__file__).parent / "real_vla_eval_server.py"


@pytest.fixture(scope="session")
def vla_eval_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_python(tmp_path_factory.mktemp("vla_eval"), "vla-eval==0.8.0")


def _policy(url: str | list[str], **more: Any) -> VlaEvalPolicy:
    return VlaEvalPolicy(VlaEvalSettings(url=url, **more))


def _first(policy: VlaEvalPolicy, trial: int, index: int, **more: Any) -> Any:
    return policy.predict([chunk_request(policy.spec, trial, index, **more)])[0].actions[0]


def test_the_real_server_gives_its_chunk_step_by_step_and_anew_for_each_episode(vla_eval_python: Path) -> None:
    with server_process(vla_eval_python, PROGRAM) as (_, url):
        policy = _policy(url)
        seen = [chunk_request(policy.spec, 0, index).observation for index in range(4)]
        steps = [_first(policy, 0, index) for index in range(4)]
        assert [step[0] for step in steps] == [0, 1, 2, 0]  # the fourth observation begins a chunk
        np.testing.assert_allclose(steps[2][1], seen[0].images["base"].mean() / 255, rtol=1e-6)
        np.testing.assert_allclose(steps[3][2], seen[3].images["wrist"].mean() / 255, rtol=1e-6)
        np.testing.assert_allclose(steps[3][3:6], seen[3].proprio[:3], rtol=1e-6)
        assert [step[6] for step in steps] == [-1, 1, 1, -1]
        assert _first(policy, 1, 0)[0] == 0 and _first(policy, 1, 1)[0] == 1
        with pytest.raises(InvalidRequestError, match="ValueError: cannot do that"):
            _first(policy, 2, 0, words="fail")
        assert _first(policy, 3, 0)[0] == 0
        assert "binary_close_positive" in str(policy.sources.facts) and not policy.sources.warnings


def test_episodes_of_several_threads_do_not_mix(vla_eval_python: Path) -> None:
    with server_process(vla_eval_python, PROGRAM) as (_, url):
        policy = _policy(url)
        with ThreadPoolExecutor(4) as threads:
            runs = threads.map(lambda trial: [_first(policy, trial, index) for index in range(6)], range(4))
        for trial, steps in enumerate(runs):
            assert [step[0] for step in steps] == [0, 1, 2, 0, 1, 2]
            for index in (0, 3):
                state = chunk_request(policy.spec, trial, index).observation.proprio
                np.testing.assert_allclose(steps[index + 2][3:6], state[:3], rtol=1e-6)


def test_a_gripper_of_the_other_sign_is_refused_until_it_is_meant(vla_eval_python: Path) -> None:
    with server_process(vla_eval_python, PROGRAM, "negative") as (_, url):
        with pytest.raises(BadInputError, match="gripper is binary_close_negative; set policy_args"):
            _policy(url)
        policy = _policy(url, invert_gripper=True)
        assert [_first(policy, 0, index)[6] for index in range(3)] == [1, 1, -1]


def _action(*values: float) -> dict[str, Any]:
    return {"type": "action", "payload": {"actions": np.array(values or (0.0,) * 7)}}


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"protocol_version": 2}, "version 2 of the protocol"),
        ({"action_spec": {"rotation": {"format": "euler_xyz"}}}, "rotation is euler_xyz"),
        ({"action_spec": {"position": {"format": "absolute_xyz"}}}, "position is absolute_xyz"),
        ({"observation_params": {"absolute_action": True}}, "actions are absolute"),
        ({"action_spec": {"gripper": {"format": "binary_close_01"}}}, "binary_close_01, which never opens"),
        ({"action_spec": {"gripper": {"format": "continuous_01"}}}, "continuous_01, which never opens"),
    ],
)
def test_a_server_that_means_something_else_is_refused_at_the_handshake(hello: dict[str, Any], reason: str) -> None:
    with vla_eval_server(hello, None) as url, pytest.raises(BadInputError, match=reason):
        _policy(url)


def test_what_is_not_sure_is_told() -> None:
    shown = {
        "depth": "depth_hw_float32",
        "state": "eef_pos3_quat4_gripper1",
        "wrist": "rgb_hwc_uint8",
        "language": "raw",
    }
    hello = {
        "action_spec": {"gripper": {"format": "raw"}},
        "observation_spec": {name: {"format": kind} for name, kind in shown.items()},
        "observation_params": {"env_seed": 0},
    }
    with vla_eval_server(hello, None) as url:
        told = _policy(url).sources.warnings
    reasons = (
        "gripper is raw",
        "wants depth",
        "wants state as eef_pos3_quat4",
        "does not ask for the wrist",
        "env_seed: 0",
    )
    assert len(told) == len(reasons) and all(reason in line for reason, line in zip(reasons, told, strict=True))


def test_the_wrist_cameras_image_may_be_left_out_unless_the_server_wants_it() -> None:
    asked: list[Mapping[str, Any]] = []

    def answer(count: int, payload: Mapping[str, Any]) -> Any:
        asked.append(payload)
        return _action()

    with vla_eval_server({"observation_spec": {"wrist": {"format": "rgb_hwc_uint8"}}}, answer) as url:
        policy = _policy(url, wrist=False)
        assert _first(policy, 0, 0)[6] == 1
        (told,) = policy.sources.warnings
    assert asked[0]["images"].keys() == {"agentview"} and "wants wrist, which it is not shown" in told
    with (
        vla_eval_server({"observation_params": {"send_wrist_image": True}}, None) as url,
        pytest.raises(BadInputError, match=r"wants the wrist camera's image; set policy_args\.wrist"),
    ):
        _policy(url, wrist=False)


@pytest.mark.parametrize("trouble", ["close", "noise", "another number"])
def test_a_connection_in_trouble_goes_on_in_a_new_session(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    troubled = iter([False, True] + [False] * 50)

    def answer(count: int, payload: Mapping[str, Any]) -> Any:
        if next(troubled):
            if trouble == "close":
                raise ConnectionAbortedError
            return b"\xc1" if trouble == "noise" else {**_action(), "seq": 999}
        return _action(count, *[0.0] * 6)

    server = vla_eval_server({}, answer)
    with server as url, caplog.at_level(logging.WARNING, "wpray.notices"):
        policy = _policy(url)
        memory, replies = None, []
        for index in range(3):
            request = replace(chunk_request(policy.spec, 0, index), memory=memory)
            replies.append(policy.predict([request])[0])
            memory = replies[-1].memory
    assert [reply.actions[0, 0] for reply in replies] == [0, 0, 1]
    assert [reply.metrics["session_breaks"] for reply in replies] == [0, 1, 1], "what the episode's row says in the end"
    assert any("goes on in a new session, at step 1" in record.getMessage() for record in caplog.records)


def test_a_restart_in_the_middle_of_an_episode_is_counted_in_its_row_and_ends_nothing() -> None:
    asked: list[int] = []

    def answer(count: int, payload: Mapping[str, Any]) -> Any:
        asked.append(count)
        if len(asked) in (5, 12, 13):  # the server goes, the third time while it is asked again
            raise ConnectionAbortedError
        return _action()

    with vla_eval_server({}, answer) as url:
        policy = LocalPolicyClient(_policy(url))
        broken, whole = (run_trial(FakeEnvironment(), policy, Trial(fake_tasks(20)[0], index, 7)) for index in range(2))
    assert (broken.num_steps, broken.num_chunks, whole.num_chunks) == (30, 20, 20)
    assert (broken.metrics["session_breaks"], whole.metrics["session_breaks"]) == (3, 0)


@pytest.mark.parametrize("shape", [(6,), (2, 7), ()])
def test_an_action_of_another_shape_is_the_requests_error(shape: tuple[int, ...]) -> None:
    def answer(count: int, payload: Mapping[str, Any]) -> Any:
        return {"type": "action", "payload": {"actions": np.zeros(shape)}}

    with vla_eval_server({}, answer) as url:
        policy = _policy(url)
        with pytest.raises(InvalidRequestError, match=r"expected \(7,\)"):
            _first(policy, 0, 0)
