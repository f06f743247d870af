"""OpenVLA-OFT, GR00T and StarVLA: servers written from their protocols, asked as their own LIBERO clients ask."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import WORDS, chunk_request
from tests.policies.remote.servers import gr00t_server, http_server, openpi_server
from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.remote import arrays
from wpray.policies.remote.gr00t import Gr00tPolicy, Gr00tSettings
from wpray.policies.remote.openvla_oft import OpenvlaOftPolicy, OpenvlaOftSettings
from wpray.policies.remote.starvla import StarvlaPolicy, StarvlaSettings

CHUNK = np.linspace(0, 1, 56).reshape(8, 7)
GRIPPER = np.array([0.0, 0.2, 0.49, 0.51, 0.8, 1.0, 1.0, 0.0])
CHUNK[:, 6] = GRIPPER
CLOSED_IS_ONE = [1, 1, 1, -1, -1, -1, -1, 1]  # LIBERO's gripper closes at +1; theirs is 0 closed, 1 open


def _oft(url: str, **more: Any) -> OpenvlaOftPolicy:
    return OpenvlaOftPolicy(OpenvlaOftSettings(url=url, **more))


def test_openvla_oft_is_asked_as_its_client_asks_and_its_gripper_is_turned() -> None:
    with http_server(lambda question: list(CHUNK)) as (url, received):
        policy = _oft(url)
        request = chunk_request(policy.spec)
        reply = policy.predict([request])[0]
        policy.close()
    ((path, body),) = received
    question = arrays.unpack_json(body)
    assert path == "/act" and list(question) == ["full_image", "wrist_image", "state", "instruction"]
    assert np.array_equal(question["full_image"], request.observation.images["base"])
    assert question["full_image"].shape == (256, 256, 3) and question["instruction"] == WORDS
    assert np.array_equal(question["wrist_image"], request.observation.images["wrist"])
    assert np.array_equal(question["state"], request.observation.proprio)
    assert np.array_equal(reply.actions[:, :6], CHUNK[:, :6]) and reply.actions[:, 6].tolist() == CLOSED_IS_ONE


def test_openvla_oft_may_encode_twice() -> None:
    with http_server(lambda question: json.dumps(arrays.pack_json(list(CHUNK)).decode()).encode()) as (url, received):
        policy = _oft(url, encoded=True, wrist=False, replan_steps=3)
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == 3
        policy.close()
    encoded = json.loads(received[0][1])
    assert encoded.keys() == {"encoded"}
    assert json.loads(encoded["encoded"]).keys() == {"full_image", "state", "instruction"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("error", "the server failed: 'error'"), ([[1.0, 2.0]], r"shape \(1, 2\)"), ({"a": 1}, "no array of numbers")],
)
def test_openvla_ofts_own_error_is_the_requests(answer: Any, reason: str) -> None:
    with http_server(lambda question: answer) as (url, _):
        policy = _oft(url)
        with pytest.raises(InvalidRequestError, match=reason):
            policy.predict([chunk_request(policy.spec)])
        policy.close()


def test_openvla_oft_is_asked_again_after_nonsense() -> None:
    answers = iter([b"<html>busy</html>", b"[{", list(CHUNK)])
    with http_server(lambda question: next(answers)) as (url, received):
        policy = _oft(url)
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == 8
        policy.close()
    assert len(received) == 3


def test_a_gripper_of_another_range_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """-1 open .. 1 closed, LIBERO's own: turned around, it would open where it is to close."""
    liberos = CHUNK.copy()
    liberos[:, 6] = 1 - 2 * GRIPPER
    with http_server(lambda question: list(liberos)) as (url, _), caplog.at_level(logging.WARNING, "wpray.notices"):
        policy = _oft(url)
        for _ in range(3):
            policy.predict([chunk_request(policy.spec)])
        policy.close()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "a gripper command is -0.6, where 0 (closed) to 1 (open) is expected" in told


# GR00T


def _gr00t_chunk(data: Mapping[str, Any]) -> Any:
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    parts = {f"action.{name}": CHUNK[np.newaxis, :, [index]].astype(np.float32) for index, name in enumerate(names)}
    return [parts, {"info": 1}]


def test_gr00t_is_asked_as_its_client_asks_and_its_gripper_is_turned() -> None:
    asked: list[Mapping[str, Any]] = []

    def answer(data: Mapping[str, Any]) -> Any:
        asked.append(data)
        return _gr00t_chunk(data)

    with gr00t_server(answer) as url:
        policy = Gr00tPolicy(Gr00tSettings(url=url))
        request = chunk_request(policy.spec)
        reply = policy.predict([request])[0]
        assert "modality_keys" in str(policy.sources.facts["servers"][url])
        policy.close()
    seen, state = asked[0]["observation"], request.observation.proprio.astype(np.float32)
    assert asked[0]["options"] is None and seen["annotation.human.action.task_description"] == [WORDS]
    assert np.array_equal(seen["video.image"], request.observation.images["base"][np.newaxis, np.newaxis])
    assert np.array_equal(seen["video.wrist_image"], request.observation.images["wrist"][np.newaxis, np.newaxis])
    assert seen["state.yaw"].tolist() == [[[float(state[5])]]] and seen["state.x"].dtype == np.float32
    assert np.array_equal(seen["state.gripper"], state[np.newaxis, np.newaxis, 6:])
    np.testing.assert_allclose(reply.actions[:, :6], CHUNK[:, :6], rtol=1e-6)
    assert reply.actions[:, 6].tolist() == CLOSED_IS_ONE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"error": "CUDA out of memory"}, "CUDA out of memory"),
        ([{"action.x": np.zeros((1, 8, 1))}, {}], "action.y is None"),
        ([{"action.x": np.zeros((2, 8, 1))}, {}], r"action.x is \(2, 8, 1\)"),
        ("nothing", "no actions, but 'nothing'"),
    ],
)
def test_gr00ts_own_error_is_the_requests(answer: Any, reason: str) -> None:
    with gr00t_server(lambda data: answer) as url:
        policy = Gr00tPolicy(Gr00tSettings(url=url))
        with pytest.raises(InvalidRequestError, match=reason):
            policy.predict([chunk_request(policy.spec)])
        policy.close()


def test_gr00t_may_be_late_and_needs_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR00T_TOKEN", "secret")
    answers = iter([b"\xc1", None, None])

    def answer(data: Mapping[str, Any]) -> Any:
        return next(answers) or _gr00t_chunk(data)

    with gr00t_server(answer, "secret") as url:
        policy = Gr00tPolicy(Gr00tSettings(url=url, api_key_env="GR00T_TOKEN"))
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == 8
        policy.close()


@pytest.mark.parametrize(
    ("modalities", "instants", "reason"),
    [
        ({"video": ["image", "left_image"]}, 1, "it wants video.left_image, which is not sent; what is: video.image"),
        ({"state": ["x", "joint_1"]}, 1, "it wants state.joint_1, which is not sent"),
        ({"video": ["image"]}, 2, "it wants video of 2 instants, and one is sent"),
        ({"action": ["x", "y", "z"]}, 16, "its actions lack roll, pitch, yaw, gripper"),
    ],
)
def test_agr00t_server_of_other_modalities_is_refused_at_the_handshake(
    modalities: dict[str, list[str]], instants: int, reason: str
) -> None:
    with gr00t_server(_gr00t_chunk, None, modalities, instants) as url, pytest.raises(BadInputError, match=reason):
        Gr00tPolicy(Gr00tSettings(url=url))


def test_agr00t_server_of_liberos_modalities_is_asked() -> None:
    parts = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    whole = {"video": ["video.image", "video.wrist_image"], "state": parts, "action": parts, "language": ["task"]}
    with gr00t_server(_gr00t_chunk, None, whole) as url:
        policy = Gr00tPolicy(Gr00tSettings(url=url))
        assert len(policy.predict([chunk_request(policy.spec)])[0].actions) == 8
        policy.close()


# StarVLA


def _starvla_answer(question: Mapping[str, Any]) -> dict[str, Any]:
    chunks = np.tile(CHUNK, (len(question["examples"]), 1, 1))
    chunks[:, 0, 0] = [example["image"][0].mean() for example in question["examples"]]
    return {"status": "ok", "ok": True, "data": {"actions": chunks.astype(np.float64)}}


@pytest.mark.parametrize("servers", [1, 2])
def test_starvla_answers_a_batch_in_one_question_to_each_server(servers: int) -> None:
    asked: list[Mapping[str, Any]] = []

    def infer(question: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(question)
        time.sleep(0.05)
        return _starvla_answer(question)

    metadata = {"available_unnorm_keys": ["franka"], "default_unnorm_key": "franka"}
    with openpi_server(infer, metadata) as one, openpi_server(infer, metadata) as two:
        policy = StarvlaPolicy(StarvlaSettings(url=[one, two][:servers], state=True))
        requests = [chunk_request(policy.spec, trial) for trial in range(5)]
        replies = policy.predict(requests)
        policy.close()
    assert sorted(len(question["examples"]) for question in asked) == ([5] if servers == 1 else [2, 3])
    for request, reply in zip(requests, replies, strict=True):
        assert reply.actions[0, 0] == request.observation.images["base"].mean()
        assert reply.actions[:, 6].tolist() == CLOSED_IS_ONE
    question = asked[0]
    example = question["examples"][0]
    assert (question["do_sample"], question["use_ddim"], question["num_ddim_steps"]) == (False, True, 10)
    assert example["lang"] == WORDS and [image.shape for image in example["image"]] == [(224, 224, 3)] * 2
    assert example["state"].shape == (1, 8) and example["state"].dtype == np.float32


def test_starvlas_statistics_are_checked_at_the_handshake() -> None:
    metadata = {"available_unnorm_keys": ["bridge", "franka"], "default_unnorm_key": None}
    with openpi_server(_starvla_answer, metadata) as url:
        with pytest.raises(BadInputError, match="unnorm_key: None is none of bridge, franka"):
            StarvlaPolicy(StarvlaSettings(url=url))
        StarvlaPolicy(StarvlaSettings(url=url, unnorm_key="franka")).close()


def test_a_starvla_server_that_may_not_fit_is_told() -> None:
    with openpi_server(_starvla_answer, {"action_chunk_size": 8, "state_keys": ["eef"]}) as url:
        policy = StarvlaPolicy(StarvlaSettings(url=url, replan_steps=16))
        policy.close()
        sending = StarvlaPolicy(StarvlaSettings(url=url, state=True))
        sending.close()
    takes, gives = policy.sources.warnings
    assert "takes the state ['eef'], which is not sent; policy_args.state" in takes
    assert "chunks of 8 actions, fewer than policy_args.replan_steps (16)" in gives
    assert not sending.sources.warnings


def test_starvlas_own_error_is_the_requests() -> None:
    failure = {"status": "error", "ok": False, "error": {"message": "no such key"}}
    for answer, reason in ((failure, "no such key"), ({"ok": True, "data": {"actions": CHUNK}}, r"shape \(1, T, 7\)")):
        with openpi_server(lambda question, answer=answer: answer) as url:
            policy = StarvlaPolicy(StarvlaSettings(url=url))
            with pytest.raises(InvalidRequestError, match=reason):
                policy.predict([chunk_request(policy.spec)])
            policy.close()
