"""`policy: openpi`: calls servers of openpi's websocket protocol, as openpi's own LIBERO client does."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.remote.answers import chunk_of, image_of, reply_of
from wpray.policies.remote.openpi_channel import OpenpiChannel
from wpray.policies.remote.remote_policy import RemotePolicy
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.remote.trouble import closed_on_error
from wpray.policies.remote.wire import DONE, EXECUTE, INDEX, MEMORY, OWN, TRIAL, check_fits, form_of
from wpray.policies.settings import NO_OUTCOME
from wpray.types import POLICY_IMAGE_SIZE, ChunkReply, ChunkRequest, ImageSpec

_REPLAN_STEPS = 5  # actions of a chunk that openpi's client executes


class OpenpiSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(8000, "ws", "wss"), NO_OUTCOME] = Field(
        ["ws://localhost:8000"], validate_default=True, description="server, or servers that share the requests"
    )
    replan_steps: NonNegativeInt | None = Field(
        None,
        description="actions of a chunk that are executed before the next request, 0: all; "
        f"default: what the server says of itself (execute_steps), else {_REPLAN_STEPS}",
    )
    image_size: PositiveInt = Field(
        POLICY_IMAGE_SIZE, le=1024, description="height and width of both images, padded to a square"
    )
    image_key: str = Field("observation/image", description="name of the base camera's image")
    wrist_key: str | None = Field("observation/wrist_image", description="name of the wrist camera's; none: not sent")
    state_key: str = Field("observation/state", description="name of position, axis-angle and finger joints")
    prompt_key: str = Field("prompt", description="name of the instruction")


class OpenpiPolicy(RemotePolicy):
    """Policy that passes each request to the first free server."""

    Settings = OpenpiSettings
    _settings: OpenpiSettings
    name = "openpi"

    @classmethod
    def spec_of(cls, settings: OpenpiSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        view = ImageSpec(settings.image_size, settings.image_size, resize="pad")
        roles = ("base", "wrist") if settings.wrist_key else ("base",)
        cameras = dict.fromkeys(roles, view)
        return settings.unbatched_spec(cls.name, cameras)

    def connect(self, url: str) -> OpenpiChannel:
        """Return an open channel."""
        settings = self._settings
        channel = OpenpiChannel(url, settings.api_key, settings.timeout_s, self.note_of(url))
        sizes = {settings.image_key: settings.image_size, settings.wrist_key: settings.image_size}
        with closed_on_error(channel):
            check_fits(channel.facts, sizes, settings.state_key)
        return channel

    def message(self, request: ChunkRequest) -> dict[str, Any]:
        """Return the map that openpi's LIBERO client sends."""
        settings = self._settings
        images = {settings.image_key: image_of(self.name, request, "base")}
        if settings.wrist_key:
            images[settings.wrist_key] = image_of(self.name, request, "wrist")
        words = request.trial.task.instruction
        message = {**images, settings.state_key: request.observation.proprio, settings.prompt_key: words}
        return {**message, **self._own(request)} if self._is_ours else message

    def reply(self, answer: Any) -> ChunkReply:
        """Return the actions that are executed of a chunk."""
        if "actions" not in answer:
            raise InvalidRequestError(f"{self.name}: the answer has no actions, but {sorted(map(str, answer))!r:.200}")
        memory = answer.get(MEMORY) if self._is_ours else None
        done = self._is_ours and answer.get(DONE) is True
        reply = reply_of(chunk_of(self.name, answer["actions"]), self._steps)
        return replace(reply, memory=memory if isinstance(memory, bytes) else None, done=done)

    def conventions(self) -> dict[str, str]:
        """Return descriptions of requests and of the use of actions."""
        size = self._settings.image_size
        return {
            "images": f"{', '.join(self.spec.cameras)}: {size}x{size} uint8, turned by 180 degrees, padded",
            "state": "end effector's position and axis-angle, two finger joints; m, rad, float64",
            "actions": "delta position, delta axis-angle, gripper -1 open .. +1 close; executed as they come",
            "executed": f"{self._steps or 'all'} actions of a chunk",
        }

    @property
    def _is_ours(self) -> bool:
        """True if the servers are wpray's own, which read its additions to the protocol."""
        return all(OWN in facts for facts in self.facts.values())

    def _own(self, request: ChunkRequest) -> dict[str, Any]:
        memory = {} if request.memory is None else {MEMORY: request.memory}
        return {TRIAL: form_of(request.trial), INDEX: request.chunk_index, **memory}

    @property
    def _steps(self) -> int:
        if self._settings.replan_steps is not None:
            return self._settings.replan_steps
        said = next((facts[EXECUTE] for facts in self.facts.values() if EXECUTE in facts), None)
        return said if type(said) is int and said >= 0 else _REPLAN_STEPS
