"""The server: what clients are told, who is let in, and that many clients share batches and survive each other."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.benchmarks.views import center_crop
from wpray.config import Config
from wpray.errors import BadInputError, InvalidRequestError
from wpray.orchestration.loop_options import loop_options
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.local import LocalPolicyClient
from wpray.policies.random_policy import RandomPolicy
from wpray.policies.relay import answering
from wpray.policies.remote import arrays
from wpray.policies.remote.openpi import OpenpiPolicy, OpenpiSettings
from wpray.policies.remote.openpi_channel import OpenpiChannel
from wpray.policies.remote.trouble import RefusedError, ServerTrouble
from wpray.rollout import run_trial
from wpray.serve.server import PolicyService
from wpray.serve.session import SharedPolicy
from wpray.types import ChunkReply, ChunkRequest, Trial

PUBLISHED_CLIENT = Path(__file__).parent / "real_openpi_client.py"
IMAGE = np.zeros((224, 224, 3), np.uint8)
QUESTION = {
    "observation/image": IMAGE,
    "observation/wrist_image": IMAGE,
    "observation/state": np.arange(8) / 8,
    "prompt": "pick up the bowl",
}


class Chunky:
    """A chunk policy that counts its episode's requests in its memory, and the sizes of its batches."""

    spec = PolicySpec("chunky", True, False, num_gpus=0, max_batch_size=16, kind="chunk", execute_steps=3)

    def __init__(self, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        self._seconds = seconds

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        self.sizes.append(len(requests))
        time.sleep(self._seconds)
        return [self._answer(request) for request in requests]

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        words, count = request.trial.task.instruction, int(request.memory or b"0") + 1
        if words == "raise":
            raise ArithmeticError("not this one")
        actions = np.tile(request.observation.proprio[:7], (8, 1))
        actions[:, 0], actions[:, 1] = count, request.chunk_index
        return ChunkReply(actions, memory=str(count).encode(), done=words == "end")


@contextmanager
def _serving(policy: AnyPolicy, token: str | None = None, **config: Any) -> Iterator[str]:
    settings = Config.model_validate({"policy": "noop", "task_suite": "fake", **config})
    taking = answering(policy, settings.batching)
    server = PolicyService(SharedPolicy(policy, taking, settings, loop_options(settings)), "127.0.0.1", 0, token)
    try:
        yield f"ws://127.0.0.1:{server.port}"
    finally:
        server.close()
        taking.close()


def _ask(channel: OpenpiChannel, **changes: Any) -> Any:
    return channel.call({**QUESTION, **changes})


def test_a_client_is_told_what_the_policy_wants_and_gives() -> None:
    with _serving(Chunky()) as url:
        channel = OpenpiChannel(url, None, 10.0)
        facts = channel.facts
        channel.close()
    assert facts["wpray"]["wants"]["observation/wrist_image"] == [224, 224, 3, "rotated by 180 degrees"]
    assert facts["wpray"]["gives"]["gripper"] == "positive_closes" and facts["execute_steps"] == 3
    assert facts["max_requests"] == 32 and channel.max_requests == 32


def test_a_plain_client_gets_chunks_of_its_own_episode() -> None:
    with _serving(Chunky()) as url:
        one, other = (OpenpiChannel(url, None, 10.0) for _ in range(2))
        assert [_ask(one)["actions"][0, :2].tolist() for _ in range(3)] == [[1, 0], [2, 1], [3, 2]]
        assert _ask(other)["actions"][0, :2].tolist() == [1, 0]
        assert _ask(one, reset=True)["actions"][0, :2].tolist() == [1, 0]
        assert {"infer_ms", "queue_ms", "batch_size"} == _ask(one)["policy_timing"].keys()
        one.close(), other.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"observation/image": IMAGE[:100]},
            r"uint8 of the shape \(224, 224, 3\), not uint8 of the shape \(100, 224, 3\)",
        ),
        ({"observation/wrist_image": None}, "observation/wrist_image: must be .* not missing"),
        ({"observation/image": IMAGE.astype(np.float32)}, "not float32"),
        ({"observation/state": np.zeros(7)}, "position, axis-angle, two finger joints, not float64"),
        ({"prompt": ""}, "prompt: must be the instruction"),
        ({"wpray/trial": {"suite": 3}}, "suite must be str, not 3"),
        ({"wpray/chunk_index": "x"}, "wpray/chunk_index"),
        ({"prompt": "raise"}, "ArithmeticError: not this one"),
    ],
)
def test_a_wrong_request_is_answered_in_words_and_harms_nobody_else(changes: dict[str, Any], reason: str) -> None:
    with _serving(Chunky()) as url:
        good, bad = (OpenpiChannel(url, None, 10.0) for _ in range(2))
        with pytest.raises(InvalidRequestError, match=reason):
            _ask(bad, **changes)
        with pytest.raises(ServerTrouble):
            _ask(bad)  # the connection is closed, as openpi's server closes it
        assert _ask(good)["actions"].shape == (8, 7)
        good.close(), bad.close()


def test_the_published_client_is_served(openpi_python: Path) -> None:
    with _serving(Chunky(), token="secret") as url:
        done = subprocess.run(
            [openpi_python, PUBLISHED_CLIENT, url], capture_output=True, text=True, timeout=120, env={}
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metadata"]["execute_steps"] == 3 and found["metadata"]["wpray"]["kind"] == "chunk"
    assert found["actions"] == [[count, count - 1, 2, 3, 4, 5, 6] for count in (1, 2, 3)]
    assert found["form"] == ["float64", [8, 7], False]
    assert found["timing"] == ["batch_size", "infer_ms", "queue_ms"]
    assert "ArithmeticError: not this one" in found["failure"]


def test_noise_and_text_are_refused_in_words() -> None:
    with _serving(Chunky()) as url:
        for frame, reason in ((b"\xc1", "MalformedError"), ("hello", "not text"), (arrays.pack([1]), "must be a map")):
            channel = OpenpiChannel(url, None, 10.0)
            channel._socket._connection.send(frame)
            answer = channel._socket.receive()
            assert isinstance(answer, str) and reason in answer
            channel.close()


def test_a_token_is_asked_for_but_not_for_the_health() -> None:
    with _serving(Chunky(), token="secret") as url:
        channel = OpenpiChannel(url, "secret", 10.0)
        assert _ask(channel)["actions"].shape == (8, 7)
        channel.close()
        for token in (None, "wrong", "secret2"):
            with pytest.raises(RefusedError, match="401"):
                OpenpiChannel(url, token, 10.0)
        with urllib.request.urlopen(f"http{url[2:]}/healthz", timeout=10) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")


def test_a_port_in_use_is_one_line() -> None:
    with _serving(Chunky()) as url:
        settings = Config.model_validate({"policy": "noop"})
        service = SharedPolicy(Chunky(), answering(Chunky(), settings.batching), settings, loop_options(settings))
        with pytest.raises(BadInputError, match="choose another"):
            PolicyService(service, "127.0.0.1", int(url.rpartition(":")[2]), None)


@pytest.mark.parametrize("actors", [1, 6])
def test_episodes_through_a_server_are_those_of_the_process(actors: int) -> None:
    """A waypoint policy, whose noise is drawn from the trial's key and whose plans outlive single requests."""
    policy = RandomPolicy(PolicySpec("random", True, False, num_gpus=0, max_batch_size=8))
    trials = [Trial(fake_tasks(90)[index % 3], index, 7) for index in range(6)]
    expected = [run_trial(FakeEnvironment(), LocalPolicyClient(policy), trial) for trial in trials]
    with _serving(policy) as one, _serving(policy) as two:
        remote = OpenpiPolicy(OpenpiSettings(url=[one, two]))
        client = LocalPolicyClient(remote)
        with ThreadPoolExecutor(actors) as threads:
            found = list(threads.map(lambda trial: run_trial(FakeEnvironment(), client, trial), trials))
        remote.close()
    for one_way, other in zip(expected, found, strict=True):
        assert np.array_equal(one_way.trajectory.actions, other.trajectory.actions)
        assert (one_way.success, one_way.num_steps) == (other.success, other.num_steps)


def test_the_policy_sees_the_middle_of_the_images_if_it_is_to() -> None:
    class Seeing(Chunky):
        def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
            seen.extend(request.observation.images for request in requests)
            return super().predict(requests)

    seen: list[Any] = []
    picture = np.random.default_rng(0).integers(0, 256, IMAGE.shape, np.uint8)
    with _serving(Seeing(), center_crop=True, center_crop_scale=0.9) as url:
        channel = OpenpiChannel(url, None, 10.0)
        _ask(channel, **{"observation/image": picture, "observation/wrist_image": picture})
        channel.close()
    for image in (seen[0]["base"], seen[0]["wrist"]):
        assert np.array_equal(image, center_crop(picture, 0.9)) and not np.array_equal(image, picture)


def test_an_episode_ends_where_the_policy_says_so() -> None:
    trial = Trial(fake_tasks(90)[0], 0, 7)
    ending = Trial(trial.task.__class__("fake", 0, "end", "end", 10, 90), 0, 7)
    with _serving(Chunky()) as url:
        remote = OpenpiPolicy(OpenpiSettings(url=url))
        client = LocalPolicyClient(remote)
        assert run_trial(FakeEnvironment(), client, ending).num_steps == 10  # the wait steps
        result = run_trial(FakeEnvironment(), client, trial)
        remote.close()
    assert [decision.duration for decision in result.decisions][:5] == [3] * 5  # as the server says of itself


def test_a_client_that_shows_other_images_is_refused_at_the_handshake() -> None:
    with _serving(Chunky()) as url:
        with pytest.raises(BadInputError, match=r"wants observation/image as \[224, 224\]; set policy_args.image_size"):
            OpenpiPolicy(OpenpiSettings(url=url, image_size=256))
        with pytest.raises(BadInputError, match="wants observation/wrist_image, which is not sent"):
            OpenpiPolicy(OpenpiSettings(url=url, wrist_key=None))


def test_200_clients_share_batches_while_others_are_killed() -> None:
    policy, over = Chunky(0.005), threading.Event()
    done: list[int] = []

    def stay(number: int) -> None:
        channel = OpenpiChannel(url, None, 60.0)
        state = np.full(8, float(number))
        for count in range(1, 6):
            actions = _ask(channel, **{"observation/state": state})["actions"]
            assert actions[0, 0] == count and actions[0, 2] == number  # its own episode's, its own state's
        done.append(number)
        channel.close()

    def be_killed(seed: int) -> None:
        chance = random.Random(seed)
        while not over.is_set():
            channel = OpenpiChannel(url, None, 60.0)
            channel._socket.send(arrays.pack(QUESTION))
            time.sleep(chance.uniform(0, 0.02))
            channel._socket._connection.socket.close()  # without a word, perhaps while it is computed
            channel.close()

    with _serving(policy) as url:
        killed = [threading.Thread(target=be_killed, args=(seed,)) for seed in range(5)]
        for thread in killed:
            thread.start()
        with ThreadPoolExecutor(200) as threads:
            list(threads.map(stay, range(200)))
        over.set()
        for thread in killed:
            thread.join(60)
        channel = OpenpiChannel(url, None, 10.0)
        assert _ask(channel)["actions"].shape == (8, 7)
        channel.close()
    assert sorted(done) == list(range(200)) and max(policy.sizes) > 4
