"""`policy: openpi` as openpi's own LIBERO client: what it sends, what it executes, and what it does about trouble."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import WORDS, chunk_request
from tests.policies.remote.servers import openpi_server
from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.factory import settings_model
from wpray.policies.remote.openpi import OpenpiPolicy, OpenpiSettings
from wpray.policies.remote.pool import ServerPool
from wpray.policies.settings import NO_OUTCOME


def _policy(url: str | list[str], **more: Any) -> OpenpiPolicy:
    return OpenpiPolicy(OpenpiSettings(url=url, **more))


def _chunk(question: Mapping[str, Any], length: int = 10) -> dict[str, Any]:
    actions = np.tile(question["observation/state"][:7], (length, 1)).astype(np.float32)
    actions[:, 0] = np.arange(length)
    return {"actions": actions}


def test_the_request_is_that_of_openpis_libero_client() -> None:
    asked: list[Mapping[str, Any]] = []

    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return _chunk(question)

    with openpi_server(infer) as url:
        policy = _policy(url)
        request = chunk_request(policy.spec)
        (reply,) = policy.predict([request])
        policy.close()
    (question,) = asked
    assert list(question) == ["observation/image", "observation/wrist_image", "observation/state", "prompt"]
    assert np.array_equal(question["observation/image"], request.observation.images["base"])
    assert np.array_equal(question["observation/wrist_image"], request.observation.images["wrist"])
    assert np.array_equal(question["observation/state"], request.observation.proprio)
    assert question["observation/state"].dtype == np.float64 and question["prompt"] == WORDS
    assert reply.actions.shape == (5, 7) and reply.actions[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_both_views_are_turned_and_padded_to_224() -> None:
    spec = OpenpiPolicy.spec_of(OpenpiSettings())
    assert spec.images and not spec.privileged and spec.kind == "chunk" and spec.remote
    assert set(spec.cameras) == {"base", "wrist"}
    for view in spec.cameras.values():
        assert (view.height, view.width, view.rotated, view.resize) == (224, 224, True, "pad")


@pytest.mark.parametrize(
    ("metadata", "given", "executed"),
    [
        ({}, None, 5),
        ({"execute_steps": 8}, None, 8),
        ({"execute_steps": 0}, None, 10),
        ({"execute_steps": 8}, 3, 3),
        ({"execute_steps": "many"}, None, 5),
        ({}, 0, 10),
        ({}, 99, 10),
    ],
)
def test_the_setting_then_the_server_decides_how_much_is_executed(
    metadata: dict[str, Any], given: int | None, executed: int
) -> None:
    with openpi_server(_chunk, metadata) as url:
        policy = _policy(url, replan_steps=given)
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == executed
        policy.close()


def test_other_names_and_sizes_for_servers_of_other_training() -> None:
    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        assert question.keys() == {"cam", "joints", "task"} and question["cam"].shape == (96, 96, 3)
        return {"actions": np.zeros((4, 7))}

    with openpi_server(infer) as url:
        names = {"image_key": "cam", "wrist_key": None, "state_key": "joints", "prompt_key": "task"}
        policy = _policy(url, image_size=96, **names)
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == 4
        policy.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"action": np.zeros((5, 7))}, "has no actions, but .'action'."),
        ({"actions": np.zeros((5, 32))}, r"shape \(5, 32\), expected \(H, 7\)"),
        ({"actions": np.zeros(7)}, r"shape \(7,\)"),
        ({"actions": np.zeros((0, 7))}, r"shape \(0, 7\)"),
        ({"actions": np.full((5, 7), np.nan)}, "not finite"),
        ({"actions": "forward"}, "no array of numbers"),
        ({"actions": [[1, 2], [3]]}, "no array of numbers"),
        ("Traceback (most recent call last):\n  ...\nValueError: wrong prompt", "ValueError: wrong prompt"),
    ],
)
def test_what_a_server_would_answer_again_is_the_requests_error(answer: Any, reason: str) -> None:
    with openpi_server(lambda question: answer) as url:
        policy = _policy(url)
        with pytest.raises(InvalidRequestError, match=reason):
            policy.predict([chunk_request(policy.spec)])
        policy.close()


def test_a_missing_camera_is_the_requests_error() -> None:
    with openpi_server(_chunk) as url:
        policy = _policy(url)
        blind = chunk_request(OpenpiPolicy.spec_of(OpenpiSettings(wrist_key=None)))
        with pytest.raises(InvalidRequestError, match="no image of the camera wrist"):
            policy.predict([blind])
        policy.close()


def test_many_threads_get_their_own_answers_from_several_servers() -> None:
    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        return {"actions": np.tile(question["observation/state"][:7], (5, 1))}

    with openpi_server(infer) as one, openpi_server(infer) as two, openpi_server(infer) as three:
        policy = _policy([one, two, three])
        requests = [chunk_request(policy.spec, trial) for trial in range(40)]
        with ThreadPoolExecutor(20) as threads:
            replies = list(threads.map(lambda request: policy.predict([request])[0], requests))
        policy.close()
    for request, reply in zip(requests, replies, strict=True):
        assert np.array_equal(reply.actions[0], request.observation.proprio[:7])


def test_what_is_told_and_kept_of_the_servers() -> None:
    with openpi_server(_chunk, {"checkpoint": "pi05_libero", "stats": np.arange(3)}) as url:
        policy = _policy(url)
        sources = policy.sources
        policy.close()
    assert sources.facts["servers"] == {url: {"checkpoint": "pi05_libero", "stats": [0, 1, 2]}}
    assert "executed as they come" in sources.facts["conventions"]["actions"]
    assert any("pi05_libero" in line for line in sources.lines)
    assert any("224x224" in line and "gripper -1 open" in line for line in sources.lines)


def test_a_gripper_that_never_opens_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        actions = np.zeros((5, 7))
        actions[:, 6] = np.linspace(0, 1, 5)
        return {"actions": actions}

    with openpi_server(infer) as url, caplog.at_level(logging.WARNING, "wpray.notices"):
        policy = _policy(url)
        for _ in range(70):
            policy.predict([chunk_request(policy.spec)])
        policy.close()
    told = [record.getMessage() for record in caplog.records if "gripper" in record.getMessage()]
    assert len(told) == 1 and "between 0 and 1" in told[0]


def test_a_gripper_that_begins_every_episode_closed_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """As one whose sign is turned around would; one that opens once, or closes later, is not doubted."""
    for first, doubts in ((1.0, 1), (-1.0, 0)):
        caplog.clear()
        actions = np.zeros((5, 7))
        actions[:, 6] = [first, -first, 1, -1, 1]
        with openpi_server(lambda question, actions=actions: {"actions": actions}) as url:
            policy = _policy(url)
            with caplog.at_level(logging.WARNING, "wpray.notices"):
                for trial in range(12):
                    policy.predict([chunk_request(policy.spec, trial, index) for index in range(2)])
            policy.close()
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == doubts and all("begins by closing the gripper" in line for line in told)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (
            {"gives": {"gripper": "positive_opens"}},
            "its actions have gripper 'positive_opens', and LIBERO's have gripper",
        ),
        ({"gives": {"rotation": "euler"}}, "its actions have rotation 'euler'"),
        (
            {"wants": {"observation/state": ["eef_pos", "eef_quat"]}},
            r"wants observation/state as \['eef_pos', 'eef_quat'\]",
        ),
    ],
)
def test_a_server_of_wpray_that_means_something_else_is_refused(own: dict[str, Any], reason: str) -> None:
    with openpi_server(_chunk, {"wpray": own}) as url, pytest.raises(BadInputError, match=reason):
        _policy(url)


def test_a_server_that_is_not_there_is_waited_for_and_one_that_refuses_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_KEY", "wrong")

    def refuse(connection: Any, request: Any) -> Any:
        return connection.respond(403, "no\n")

    with openpi_server(_chunk, process_request=refuse) as url, pytest.raises(BadInputError, match="HTTP status 403"):
        _policy(url, api_key_env="POLICY_KEY")
    with pytest.raises(BadInputError, match="environment variable NOT_SET is not set"):
        _policy("ws://127.0.0.1:9", api_key_env="NOT_SET")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("gpu1", ["ws://gpu1:8000"]),
        ("gpu1:9000,gpu2", ["ws://gpu1:9000", "ws://gpu2:8000"]),
        (["wss://lab.example/policy"], ["wss://lab.example:8000/policy"]),
        ("ws://[::1]", ["ws://[::1]:8000"]),
    ],
)
def test_urls_may_be_short(given: Any, read: list[str]) -> None:
    assert OpenpiSettings(url=given).url == read


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("http://gpu1", "must begin with ws:// or wss://"),
        ("ws://", "names no host"),
        ("ws://gpu1:99999", "0 to 65535"),
        ([], "a URL, or a list"),
        (3, "a URL, or a list"),
        ("gpu1,gpu1:8000", "twice"),
        ("ws://me:secret@gpu1", "api_key_env"),
    ],
)
def test_urls_that_are_none_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OpenpiSettings(url=given)


def test_the_pool_is_closed_with_the_policy() -> None:
    with openpi_server(_chunk) as url:
        policy = _policy(url)
        policy.close()
        assert isinstance(policy._pool, ServerPool) and policy._pool._closed


def test_where_the_servers_are_decides_no_outcome() -> None:
    for name in ("openpi", "openvla_oft", "vla_eval", "gr00t", "starvla"):
        model = settings_model(name)
        assert model is not None
        marked = {setting for setting, info in model.model_fields.items() if NO_OUTCOME in info.metadata}
        assert marked == {"url", "timeout_s", "connections", "api_key_env"}
