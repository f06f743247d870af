"""`policy: vla_eval`: calls model servers of vla-eval, which return one action at a time and keep chunks themselves.

An episode stays on one connection. If that breaks, it continues in a new session, in which the server has lost
what it kept of the episode: the rest of its chunk, its memory. The row's metric `session_breaks` counts these.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import NOTICES, PolicyCheck, PolicySpec, Sources
from wpray.policies.remote.answers import GripperWatch, chunk_of, image_of
from wpray.policies.remote.doctor import server_check
from wpray.policies.remote.pool import Outage
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.remote.trouble import RefusedError, ServerTrouble, closed_on_error, in_one_line
from wpray.policies.remote.vla_eval_channel import VlaEvalChannel
from wpray.policies.settings import NO_OUTCOME
from wpray.types import ACTION_DIM, ChunkReply, ChunkRequest, FloatArray, ImageSpec, TrialKey

_NOTICES = logging.getLogger(NOTICES)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_MEANT = {"position": "delta_xyz", "rotation": "axis_angle", "gripper": "binary_close_positive"}
_CAMERAS = {"agentview": "base", "wrist": "wrist"}  # name of an image -> role
# Inputs that a server may declare, by name, in the form in which they are sent.
_IMAGE, _STATE, _WORDS = "rgb_hwc_uint8", "eef_pos3_axisangle3_gripper2", "language"
_SHOWN = {"image": _IMAGE, "agentview": _IMAGE, "state": _STATE, "language": _WORDS}
_WRIST = {"wrist": _IMAGE, "wrist_image": _IMAGE}
_SENT = {"send_wrist_image", "send_state"}  # what a server may ask for and gets


class VlaEvalSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(8000, "ws", "wss"), NO_OUTCOME] = Field(
        ["ws://localhost:8000"], validate_default=True, description="server, or servers that share the episodes"
    )
    image_size: PositiveInt = Field(256, le=1024, description="height and width of both images")
    wrist: bool = Field(True, description="send the wrist camera's image, too")
    invert_gripper: bool = Field(False, description="the server's gripper closes at -1: turn its sign")


class VlaEvalPolicy:
    """Policy that calls a server for each step, over one connection per thread, because each env actor has a thread."""

    Settings = VlaEvalSettings
    name = "vla_eval"

    @classmethod
    def spec_of(cls, settings: VlaEvalSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        roles = ("base", "wrist") if settings.wrist else ("base",)
        cameras = dict.fromkeys(roles, ImageSpec(settings.image_size, settings.image_size))
        return settings.unbatched_spec(cls.name, cameras, execute_steps=1)

    @classmethod
    def doctor_checks(cls, settings: VlaEvalSettings) -> list[PolicyCheck]:
        """Return the check that each server answers."""
        return [server_check(cls, settings)]

    def __init__(self, settings: VlaEvalSettings, patient: bool = True) -> None:
        """Wait until a server answers. Raise BadInputError if it means something else than LIBERO does.

        If it is not `patient`, a server that does not answer raises BadInputError, too, now and later.
        """
        self.spec, self._settings, self._patient = self.spec_of(settings), settings, patient
        self._gripper = GripperWatch(partial(_NOTICES.warning, "%s: %s", self.name))
        self._outages = {url: Outage() for url in settings.url}
        self._turns = itertools.count()
        self._own = threading.local()
        connection = self._connection()
        self._retrying(connection, lambda channel: None, starting=True)
        self.sources = self._sources(connection.facts)

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request; any number of threads may call this."""
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Close this thread's connection."""
        self._connection().drop()

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        connection, observation = self._connection(), self._observation(request)
        breaks = int(request.memory or 0)  # of the episode so far

        def act(channel: VlaEvalChannel) -> Mapping[str, Any]:
            nonlocal breaks
            if connection.trial != request.trial.key or request.chunk_index == 0:
                self._begin(connection, channel, request)
                breaks += request.chunk_index > 0
            return channel.act(observation)

        answer = self._retrying(connection, act)
        action = chunk_of(self.name, np.atleast_2d(_action_of(answer)))[:1]
        self._gripper.see(action)
        executable = self._executable(action)
        self._gripper.see_start(executable, request)
        return ChunkReply(executable, metrics={"session_breaks": breaks}, memory=str(breaks).encode())

    def _begin(self, connection: _Connection, channel: VlaEvalChannel, request: ChunkRequest) -> None:
        if connection.trial is not None:
            channel.end()
        task = request.trial.task
        if request.chunk_index:
            _NOTICES.warning("%s: %s goes on in a new session, at step %d", self.name, task.name, request.chunk_index)
        about = {
            "name": task.instruction,
            "suite": task.suite,
            "task_id": task.task_id,
            "episode_idx": request.trial.init_state,
        }
        channel.begin(about)
        connection.trial = request.trial.key

    def _observation(self, request: ChunkRequest) -> dict[str, Any]:
        roles = {name: role for name, role in _CAMERAS.items() if role in self.spec.cameras}
        images = {name: image_of(self.name, request, role) for name, role in roles.items()}
        state = request.observation.proprio
        return {
            "images": images,
            "task_description": request.trial.task.instruction,
            "states": state,
            "controller_states": state.astype(np.float32),
        }

    def _executable(self, action: FloatArray) -> FloatArray:
        """Return the action with a gripper of -1 or +1, as vla-eval's LIBERO executes it."""
        turned = action.copy()
        opens = turned[:, -1] > 0 if self._settings.invert_gripper else turned[:, -1] < 0
        turned[:, -1] = np.where(opens, -1.0, 1.0)
        return turned

    def _connection(self) -> _Connection:
        """Return this thread's connection."""
        if not hasattr(self._own, "connection"):
            self._own.connection = _Connection()
        connection: _Connection = self._own.connection
        return connection

    def _retrying(self, connection: _Connection, work: Any, starting: bool = False) -> Any:
        """Return the result of `work`, over as many connections as it takes; a server's own error is raised."""
        pause_s = _FIRST_PAUSE_S
        while True:
            url = connection.url or self._settings.url[next(self._turns) % len(self._settings.url)]
            try:
                if connection.channel is None:
                    connection.use(url, self._connect(url))
                found = work(connection.channel)
            except (ServerTrouble, BadInputError) as trouble:
                connection.drop()
                if starting and isinstance(trouble, RefusedError | BadInputError):
                    text = f"{url} refuses this client ({in_one_line(trouble)})"
                    raise BadInputError(f"{self.name}: {text}; check policy_args") from trouble
                if not self._patient:
                    raise BadInputError(f"{self.name}: {url} does not answer ({in_one_line(trouble)})") from trouble
                self._log(url, self._outages[url].begin(trouble))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except InvalidRequestError:
                connection.drop()
                raise
            self._log(url, self._outages[url].end())
            return found

    def _log(self, url: str, text: str | None) -> None:
        if text is not None:
            _NOTICES.warning("%s: %s %s", self.name, url, text)

    def _connect(self, url: str) -> VlaEvalChannel:
        settings = self._settings
        note = partial(_NOTICES.warning, "%s: %s: %s", self.name, url)
        channel = VlaEvalChannel(url, settings.api_key, settings.timeout_s, note)
        with closed_on_error(channel):
            self._check(channel.facts)
        return channel

    def _check(self, facts: Mapping[str, Any]) -> None:
        """Raise BadInputError if the server's actions mean something else than LIBERO's."""
        formats = _formats(facts.get("action_spec"))
        meant = {**_MEANT, **({"gripper": "binary_close_negative"} if self._settings.invert_gripper else {})}
        for part, format_ in formats.items():
            if part in ("position", "rotation") and format_ != meant[part] and format_ != "raw":
                raise BadInputError(f"its {part} is {format_}, and LIBERO's is {meant[part]}")
            if part == "gripper" and format_.endswith("_01"):
                raise BadInputError(f"its gripper is {format_}, which never opens LIBERO's, whose sign decides")
            if part == "gripper" and format_.startswith("binary_close") and format_ != meant[part]:
                raise BadInputError(f"its gripper is {format_}; set policy_args.invert_gripper to the other value")
        wanted = _wishes(facts)
        if wanted.get("absolute_action"):
            raise BadInputError("its actions are absolute, and LIBERO's are deltas")
        if wanted.get("send_wrist_image") and not self._settings.wrist:
            raise BadInputError("it wants the wrist camera's image; set policy_args.wrist")

    def _sources(self, facts: Mapping[str, Any]) -> Sources:
        warnings = tuple(f"{self.name}: the server{text}" for text in self._oddities(facts))
        size = self._settings.image_size
        images = [name for name, role in _CAMERAS.items() if role in self.spec.cameras]
        conventions = {
            "images": f"{', '.join(images)}: {size}x{size} uint8, turned by 180 degrees",
            "state": "end effector's position and axis-angle, two finger joints; m, rad, float64",
            "actions": "delta position, delta axis-angle; gripper below 0 opens, made -1, else +1",
            "executed": "1 action an observation",
        }
        how = "; ".join(f"{name}: {text}" for name, text in conventions.items())
        lines = (f"{self.name}: a server says of itself {json.dumps(facts)[:500]}", f"{self.name}: {how}")
        return Sources({"servers": facts, "conventions": conventions}, lines, warnings)

    def _oddities(self, facts: Mapping[str, Any]) -> Iterator[str]:
        """Yield what of the server's description does not fit what it gets or what LIBERO executes."""
        for part, kind in _formats(facts.get("action_spec")).items():
            if kind != _MEANT.get(part):
                yield f"'s {part} is {kind}; LIBERO's are {_MEANT}"
        yield from self._shown_otherwise(facts)
        for name, value in _wishes(facts).items():
            if name not in _SENT:
                yield f" asks for {name}: {value}, which has no effect here"

    def _shown_otherwise(self, facts: Mapping[str, Any]) -> Iterator[str]:
        shown = _SHOWN | (_WRIST if self._settings.wrist else {})
        for part, kind in _formats(facts.get("observation_spec")).items():
            if part not in shown:
                yield f" wants {part}, which it is not shown"
            elif kind not in (shown[part], "raw"):
                yield f" wants {part} as {kind}, and is shown {shown[part]}"
        wanted = _wishes(facts)
        if wanted and not wanted.get("send_wrist_image") and self._settings.wrist:
            yield " does not ask for the wrist camera's image, and gets it; policy_args.wrist false leaves it out"


class _Connection:
    """A thread's connection, which ends with the thread."""

    def __init__(self) -> None:
        self.channel: VlaEvalChannel | None = None
        self.url: str | None = None
        self.trial: TrialKey | None = None  # of the episode under way
        self.facts: Mapping[str, Any] = {}

    def use(self, url: str, channel: VlaEvalChannel) -> None:
        """Take a new connection."""
        self.url, self.channel, self.trial, self.facts = url, channel, None, channel.facts

    def drop(self) -> None:
        """Close the connection; the next one may be to another server."""
        channel, self.channel, self.url, self.trial = self.channel, None, None, None
        if channel is not None:
            channel.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end, modules may be gone
            self.drop()


def _action_of(answer: Mapping[str, Any]) -> Any:
    found = answer.get("actions", answer.get("action"))
    if found is None:
        raise InvalidRequestError(f"vla_eval: the answer has no actions, but {sorted(answer)!r:.200}")
    shape = np.shape(found)
    if shape not in ((ACTION_DIM,), (1, ACTION_DIM)):
        raise InvalidRequestError(f"vla_eval: the action has the shape {shape}, expected ({ACTION_DIM},)")
    return found


def _wishes(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters that the server asks of the harness."""
    found = facts.get("observation_params")
    return found if isinstance(found, Mapping) else {}


def _formats(spec: Any) -> dict[str, str]:
    if not isinstance(spec, Mapping):
        return {}
    return {part: str(said.get("format")) for part, said in spec.items() if isinstance(said, Mapping)}
