"""`policy: starvla`: calls StarVLA's policy servers, with the requests of many environments in one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.remote.answers import image_of, reply_of
from wpray.policies.remote.openpi_channel import OpenpiChannel
from wpray.policies.remote.remote_policy import RemotePolicy
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.settings import NO_OUTCOME
from wpray.types import POLICY_IMAGE_SIZE, ChunkReply, ChunkRequest, FloatArray, ImageSpec

_CLOSES_BELOW = 0.5


class StarvlaSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(10093, "ws", "wss"), NO_OUTCOME] = Field(
        ["ws://localhost:10093"], validate_default=True, description="server, or servers that share the requests"
    )
    batch_size: PositiveInt = Field(8, le=256, description="requests at most in one message to a server")
    replan_steps: NonNegativeInt = Field(0, description="actions of a chunk that are executed, 0: all")
    image_size: PositiveInt = Field(POLICY_IMAGE_SIZE, le=1024, description="height and width of both images")
    state: bool = Field(False, description="send position, axis-angle and finger joints, too")
    unnorm_key: str | None = Field(None, description="data set whose statistics scale the actions; none: the server's")
    use_ddim: bool = Field(True, description="passed on to the server")
    num_ddim_steps: PositiveInt = Field(10, description="passed on to the server")


class StarvlaPolicy(RemotePolicy):
    """Policy that sends each server its share of a batch and converts the gripper's command as StarVLA's client."""

    Settings = StarvlaSettings
    _settings: StarvlaSettings
    name = "starvla"

    @classmethod
    def spec_of(cls, settings: StarvlaSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        cameras = dict.fromkeys(("base", "wrist"), ImageSpec(settings.image_size, settings.image_size))
        size = settings.batch_size * len(settings.url)
        return PolicySpec(cls.name, True, False, 0, max_batch_size=size, kind="chunk", cameras=cameras, remote=True)

    def __init__(self, settings: StarvlaSettings, patient: bool = True) -> None:
        """Connect, as RemotePolicy does."""
        super().__init__(settings, patient)
        self._threads = ThreadPoolExecutor(len(settings.url), thread_name_prefix="starvla")

    def connect(self, url: str) -> OpenpiChannel:
        """Return an open channel. Raise BadInputError for a server without the statistics of the settings."""
        settings = self._settings
        channel = OpenpiChannel(url, settings.api_key, settings.timeout_s, self.note_of(url))
        known, key = (
            channel.facts.get("available_unnorm_keys"),
            settings.unnorm_key or channel.facts.get("default_unnorm_key"),
        )
        if isinstance(known, list) and known and key not in known:
            channel.close()
            raise BadInputError(f"policy_args.unnorm_key: {key} is none of {', '.join(map(str, known))}")
        return channel

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request; the servers share the batch."""
        shares = min(len(self._settings.url), len(requests))
        parts = [requests[start::shares] for start in range(shares)]
        replies: list[ChunkReply | None] = [None] * len(requests)
        for start, answered in enumerate(self._threads.map(self._share, parts)):
            replies[start::shares] = answered
        return [reply for reply in replies if reply is not None]

    def _share(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        message = {**self.message(requests[0]), "examples": [self._example(request) for request in requests]}
        chunks = self._chunks(self._pool.call(message), len(requests))
        replies = [self._reply_of(chunk) for chunk in chunks]
        return [self.watched(reply, request) for reply, request in zip(replies, requests, strict=True)]

    def message(self, request: ChunkRequest) -> dict[str, Any]:
        """Return what StarVLA's LIBERO client sends for one request."""
        settings = self._settings
        how = {"do_sample": False, "use_ddim": settings.use_ddim, "num_ddim_steps": settings.num_ddim_steps}
        return {"examples": [self._example(request)], "unnorm_key": settings.unnorm_key, **how}

    def reply(self, answer: Any) -> ChunkReply:
        """Return the actions of a batch of one."""
        return self._reply_of(self._chunks(answer, 1)[0])

    def conventions(self) -> dict[str, str]:
        """Return descriptions of requests and of the use of actions."""
        size = self._settings.image_size
        return {
            "images": f"base, wrist: {size}x{size} uint8, turned by 180 degrees",
            "state": "position, axis-angle, two finger joints; float32" if self._settings.state else "not sent",
            "actions": "delta position, delta axis-angle; gripper above 0.5 opens, made -1, else +1",
            "executed": f"{self._settings.replan_steps or 'all'} actions of a chunk",
        }

    def oddities(self, said: Mapping[str, Any]) -> Iterator[str]:
        """Yield whether the server's model takes a state that is not sent, or executes less of a chunk than is set."""
        if said.get("state_keys") and not self._settings.state:
            yield f"takes the state {said['state_keys']}, which is not sent; policy_args.state sends it"
        size = said.get("action_chunk_size")
        if isinstance(size, int) and size < self._settings.replan_steps:
            yield f"gives chunks of {size} actions, fewer than policy_args.replan_steps ({self._settings.replan_steps})"

    def _example(self, request: ChunkRequest) -> dict[str, Any]:
        images = [image_of(self.name, request, role) for role in ("base", "wrist")]
        state = {"state": request.observation.proprio.astype(np.float32)[np.newaxis]} if self._settings.state else {}
        return {"image": images, "lang": request.trial.task.instruction, **state}

    def _chunks(self, answer: Mapping[str, Any], count: int) -> Any:
        """Return (B, T, 7) of an answer. Raise InvalidRequestError for the server's own error, or other shapes."""
        if answer.get("ok") is False or answer.get("status") == "error":
            said = answer.get("error")
            text = said.get("message", said) if isinstance(said, Mapping) else said
            raise InvalidRequestError(f"{self.name}: the server failed: {text!s:.500}")
        data = answer.get("data")
        chunks = data.get("actions") if isinstance(data, Mapping) else None
        if not isinstance(chunks, np.ndarray) or chunks.ndim != 3 or len(chunks) != count:
            shape = chunks.shape if isinstance(chunks, np.ndarray) else chunks
            raise InvalidRequestError(f"{self.name}: the actions are {shape!r:.80}, expected the shape ({count}, T, 7)")
        return chunks

    def _reply_of(self, chunk: Any) -> ChunkReply:
        return reply_of(self.from_unit_gripper(chunk, _executable), self._settings.replan_steps)


def _executable(actions: FloatArray) -> FloatArray:
    turned = actions.copy()
    turned[:, -1] = np.where(turned[:, -1] > _CLOSES_BELOW, -1.0, 1.0)
    return turned
