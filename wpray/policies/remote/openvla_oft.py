"""`policy: openvla_oft`: calls OpenVLA-OFT's own HTTP server (vla-scripts/deploy.py)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.remote.answers import image_of, open_at_one, reply_of
from wpray.policies.remote.arrays import pack_json
from wpray.policies.remote.http_channel import HttpChannel
from wpray.policies.remote.remote_policy import RemotePolicy
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.settings import NO_OUTCOME
from wpray.types import ChunkReply, ChunkRequest, ImageSpec


class OpenvlaOftSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(8777, "http", "https"), NO_OUTCOME] = Field(
        ["http://localhost:8777"], validate_default=True, description="server, or servers that share the requests"
    )
    replan_steps: NonNegativeInt = Field(8, description="actions of a chunk that are executed, 0: all")
    image_size: PositiveInt = Field(256, le=1024, description="height and width as sent; the server resizes to 224")
    wrist: bool = Field(True, description="send the wrist camera's image, too")
    encoded: bool = Field(False, description="send the request as a JSON text within JSON, as double encoding asks")


class OpenvlaOftPolicy(RemotePolicy):
    """Policy that passes each request to the first free server and converts the gripper's command as OFT's client."""

    Settings = OpenvlaOftSettings
    _settings: OpenvlaOftSettings
    name = "openvla_oft"

    @classmethod
    def spec_of(cls, settings: OpenvlaOftSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        view = ImageSpec(settings.image_size, settings.image_size)
        cameras = dict.fromkeys(("base", "wrist") if settings.wrist else ("base",), view)
        return settings.unbatched_spec(cls.name, cameras)

    def connect(self, url: str) -> HttpChannel:
        """Return an open channel."""
        return HttpChannel(url, "/act", self._settings.api_key, self._settings.timeout_s, self._checked)

    def message(self, request: ChunkRequest) -> dict[str, Any]:
        """Return the map that OFT's LIBERO client sends."""
        asked: dict[str, Any] = {"full_image": image_of(self.name, request, "base")}
        if self._settings.wrist:
            asked["wrist_image"] = image_of(self.name, request, "wrist")
        asked |= {"state": request.observation.proprio, "instruction": request.trial.task.instruction}
        return {"encoded": pack_json(asked).decode()} if self._settings.encoded else asked

    def reply(self, answer: Any) -> ChunkReply:
        """Return the actions with the gripper as LIBERO means it."""
        return reply_of(self.from_unit_gripper(answer, open_at_one), self._settings.replan_steps)

    def conventions(self) -> dict[str, str]:
        """Return descriptions of requests and of the use of actions."""
        size = self._settings.image_size
        return {
            "images": f"{', '.join(self.spec.cameras)}: {size}x{size} uint8, turned by 180 degrees",
            "state": "end effector's position and axis-angle, two finger joints; m, rad, float64",
            "actions": "delta position, delta axis-angle; gripper 0 closed .. 1 open, made +1 and -1",
            "executed": f"{self._settings.replan_steps or 'all'} actions of a chunk",
        }

    def _checked(self, answer: Any) -> Any:
        if isinstance(answer, str):
            raise InvalidRequestError(f"{self.name}: the server failed: {answer[:200]!r}; its log has the traceback")
        return answer
