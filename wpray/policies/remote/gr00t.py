"""`policy: gr00t`: calls servers of Isaac GR00T N1.6 and N1.7 (run_gr00t_server.py with the simulation wrapper)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.remote.answers import image_of, open_at_one, reply_of
from wpray.policies.remote.gr00t_channel import Gr00tChannel
from wpray.policies.remote.remote_policy import RemotePolicy
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.remote.trouble import closed_on_error
from wpray.policies.settings import NO_OUTCOME
from wpray.types import ChunkReply, ChunkRequest, Float32Array, FloatArray, ImageArray, ImageSpec

_PARTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # of a state and of an action
_VIDEOS = ("image", "wrist_image")
_WORDS = "annotation.human.action.task_description"


class Gr00tSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(5555, "tcp"), NO_OUTCOME] = Field(
        ["tcp://localhost:5555"], validate_default=True, description="server, or servers that share the requests"
    )
    replan_steps: NonNegativeInt = Field(8, description="actions of a chunk that are executed, 0: all")
    image_size: PositiveInt = Field(256, le=1024, description="height and width of both images")


class Gr00tPolicy(RemotePolicy):
    """Policy that passes each request to the first free server and converts the gripper's command."""

    Settings = Gr00tSettings
    _settings: Gr00tSettings
    name = "gr00t"

    @classmethod
    def spec_of(cls, settings: Gr00tSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        cameras = dict.fromkeys(("base", "wrist"), ImageSpec(settings.image_size, settings.image_size))
        return settings.unbatched_spec(cls.name, cameras)

    def connect(self, url: str) -> Gr00tChannel:
        """Return an open channel. Raise BadInputError for a server that requires something else than it is sent."""
        channel = Gr00tChannel(url, self._settings.api_key, self._settings.timeout_s, self.note_of(url))
        with closed_on_error(channel):
            check_modalities(channel.facts)
        return channel

    def message(self, request: ChunkRequest) -> dict[str, Any]:
        """Return what GR00T's LIBERO client sends: a batch of one, of one instant."""
        images = {
            "video.image": _one(image_of(self.name, request, "base")),
            "video.wrist_image": _one(image_of(self.name, request, "wrist")),
        }
        state = {f"state.{part}": _one(value) for part, value in _parts(request.observation.proprio).items()}
        return {"observation": {**images, **state, _WORDS: [request.trial.task.instruction]}, "options": None}

    def reply(self, answer: Any) -> ChunkReply:
        """Return the actions with the gripper as LIBERO means it."""
        action = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(action, Mapping):
            raise InvalidRequestError(f"{self.name}: the answer has no actions, but {answer!r:.200}")
        columns = [_column(self.name, action, part) for part in _PARTS]
        if len({len(column) for column in columns}) > 1:
            raise InvalidRequestError(f"{self.name}: the parts of the actions have {list(map(len, columns))} steps")
        return reply_of(self.from_unit_gripper(np.stack(columns, axis=1), open_at_one), self._settings.replan_steps)

    def conventions(self) -> dict[str, str]:
        """Return descriptions of requests and of the use of actions."""
        size = self._settings.image_size
        return {
            "images": f"base, wrist: {size}x{size} uint8, turned by 180 degrees",
            "state": "end effector's position, axis-angle as roll, pitch and yaw, two finger joints; m, rad, float32",
            "actions": "delta position, delta axis-angle; gripper 0 closed .. 1 open, made +1 and -1",
            "executed": f"{self._settings.replan_steps or 'all'} actions of a chunk",
        }


def check_modalities(facts: Mapping[str, Any]) -> None:
    """Raise BadInputError if a server requires images or states that are not sent, or returns other actions."""
    for modality, sent in (("video", _VIDEOS), ("state", _PARTS)):
        keys, instants = _modality(facts, modality)
        unknown = [f"{modality}.{key}" for key in keys if key not in sent]
        if unknown:
            listed = ", ".join(f"{modality}.{key}" for key in sent)
            raise BadInputError(f"it wants {', '.join(unknown)}, which is not sent; what is: {listed}")
        if instants > 1:
            raise BadInputError(f"it wants {modality} of {instants} instants, and one is sent")
    given = _modality(facts, "action")[0]
    missing = [part for part in _PARTS if given and part not in given]
    if missing:
        raise BadInputError(f"its actions lack {', '.join(missing)}; LIBERO's have {', '.join(_PARTS)}")


def _modality(facts: Mapping[str, Any], name: str) -> tuple[list[str], int]:
    """Return the names that a modality has and its number of instants; nothing where the server does not say."""
    said = facts.get(name)
    try:
        found = json.loads(said["as_json"]) if isinstance(said, Mapping) else {}
        keys, instants = found.get("modality_keys"), found.get("delta_indices")
    except (KeyError, TypeError, ValueError, AttributeError):
        return [], 0
    listed = [str(key).removeprefix(f"{name}.") for key in keys] if isinstance(keys, list) else []
    return listed, len(instants) if isinstance(instants, list) else 0


def _parts(state: FloatArray) -> dict[str, Float32Array]:
    values = state.astype(np.float32)
    return {**{part: values[index : index + 1] for index, part in enumerate(_PARTS[:6])}, "gripper": values[6:]}


def _one(array: ImageArray | Float32Array) -> Any:
    """Return the array as a batch of one, of one instant."""
    return array[np.newaxis, np.newaxis]


def _column(name: str, action: Mapping[Any, Any], part: str) -> Any:
    """Return (T,) of the (1, T, 1) that a part of an action has."""
    found = action.get(f"action.{part}")
    if not isinstance(found, np.ndarray) or found.size == 0 or found.size != max(found.shape):
        shape = found.shape if isinstance(found, np.ndarray) else found
        raise InvalidRequestError(f"{name}: action.{part} is {shape!r:.80}, expected the shape (1, T, 1)")
    return found.reshape(-1)
