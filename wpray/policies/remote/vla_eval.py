"""`policy: vla_eval`: asks model servers of vla-eval, which give one action an observation and keep chunks themselves.

An episode stays on one connection. If that breaks, the episode goes on in a new one, where the server begins a chunk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import NOTICES, PolicyCheck, PolicySpec, Sources
from wpray.policies.remote.answers import GripperWatch, chunk_of, image_of
from wpray.policies.remote.doctor import server_check
from wpray.policies.remote.pool import Absence
from wpray.policies.remote.settings import ServerSettings, server_urls
from wpray.policies.remote.trouble import RefusedError, ServerTrouble, closed_on_error, in_one_line
from wpray.policies.remote.vla_eval_channel import VlaEvalChannel
from wpray.policies.settings import NO_OUTCOME
from wpray.types import ACTION_DIM, ChunkReply, ChunkRequest, FloatArray, ImageSpec, TrialKey

_NOTICES = logging.getLogger(NOTICES)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_MEANT = {"position": "delta_xyz", "rotation": "axis_angle", "gripper": "binary_close_positive"}
_SHOWN = {"image", "agentview", "wrist", "wrist_image", "state", "language"}


class VlaEvalSettings(ServerSettings):
    """Addresses of the servers, and the content of requests."""

    url: Annotated[list[str], server_urls(8000, "ws", "wss"), NO_OUTCOME] = Field(
        ["ws://localhost:8000"], validate_default=True, description="server, or servers that share the episodes"
    )
    image_size: PositiveInt = Field(256, le=1024, description="height and width of both images")
    invert_gripper: bool = Field(False, description="the server's gripper closes at -1: turn its sign")


class VlaEvalPolicy:
    """Policy that asks a server for each step, with one connection per thread, as every env actor has one."""

    Settings = VlaEvalSettings
    name = "vla_eval"

    @classmethod
    def spec_of(cls, settings: VlaEvalSettings) -> PolicySpec:
        """Return the spec with the observations that servers receive."""
        cameras = dict.fromkeys(("base", "wrist"), ImageSpec(settings.image_size, settings.image_size))
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
        self._absences = {url: Absence() for url in settings.url}
        self._turns = itertools.count()
        self._own = threading.local()
        seat = self._seat()
        self._patiently(seat, lambda channel: None, meeting=True)
        self.sources = self._sources(seat.facts)

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request; any number of threads may call this."""
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Close this thread's connection."""
        self._seat().leave()

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        seat, observation = self._seat(), self._observation(request)

        def act(channel: VlaEvalChannel) -> Mapping[str, Any]:
            if seat.trial != request.trial.key or request.chunk_index == 0:
                self._begin(seat, channel, request)
            return channel.act(observation)

        answer = self._patiently(seat, act)
        action = chunk_of(self.name, np.atleast_2d(_action_of(answer)))[:1]
        self._gripper.see(action)
        return ChunkReply(self._executable(action))

    def _begin(self, seat: _Seat, channel: VlaEvalChannel, request: ChunkRequest) -> None:
        if seat.trial is not None:
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
        seat.trial = request.trial.key

    def _observation(self, request: ChunkRequest) -> dict[str, Any]:
        images = {"agentview": image_of(self.name, request, "base"), "wrist": image_of(self.name, request, "wrist")}
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

    def _seat(self) -> _Seat:
        """Return this thread's place at a server."""
        if not hasattr(self._own, "seat"):
            self._own.seat = _Seat()
        seat: _Seat = self._own.seat
        return seat

    def _patiently(self, seat: _Seat, work: Any, meeting: bool = False) -> Any:
        """Return what `work` gives, over as many connections as it takes; a server's own error is raised."""
        pause_s = _FIRST_PAUSE_S
        while True:
            url = seat.url or self._settings.url[next(self._turns) % len(self._settings.url)]
            try:
                if seat.channel is None:
                    seat.sit(url, self._connect(url))
                found = work(seat.channel)
            except (ServerTrouble, BadInputError) as trouble:
                seat.leave()
                if meeting and isinstance(trouble, RefusedError | BadInputError):
                    text = f"{url} refuses this client ({in_one_line(trouble)})"
                    raise BadInputError(f"{self.name}: {text}; check policy_args") from trouble
                if not self._patient:
                    raise BadInputError(f"{self.name}: {url} gives no answer ({in_one_line(trouble)})") from trouble
                self._say(url, self._absences[url].begins(trouble))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except InvalidRequestError:
                seat.leave()
                raise
            self._say(url, self._absences[url].ends())
            return found

    def _say(self, url: str, text: str | None) -> None:
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
            if part == "gripper" and format_.startswith("binary_close") and format_ != meant[part]:
                raise BadInputError(f"its gripper is {format_}; set policy_args.invert_gripper to the other value")
        if facts.get("observation_params", {}).get("absolute_action"):
            raise BadInputError("its actions are absolute, and LIBERO's are deltas")

    def _sources(self, facts: Mapping[str, Any]) -> Sources:
        formats, shown = _formats(facts.get("action_spec")), _formats(facts.get("observation_spec"))
        odd = [f"{part} is {kind}" for part, kind in formats.items() if kind != _MEANT.get(part)]
        missing = [part for part in shown if part not in _SHOWN]
        warnings = [f"{self.name}: the server's {text}; LIBERO's are {_MEANT}" for text in odd]
        warnings += [f"{self.name}: the server wants {part}, which it is not shown" for part in missing]
        size = self._settings.image_size
        conventions = {
            "images": f"agentview, wrist: {size}x{size} uint8, turned by 180 degrees",
            "state": "end effector's position and axis-angle, two finger joints; m, rad, float64",
            "actions": "delta position, delta axis-angle; gripper below 0 opens, made -1, else +1",
            "executed": "1 action an observation",
        }
        how = "; ".join(f"{name}: {text}" for name, text in conventions.items())
        lines = (f"{self.name}: a server says of itself {json.dumps(facts)[:500]}", f"{self.name}: {how}")
        return Sources({"servers": facts, "conventions": conventions}, lines, tuple(warnings))


class _Seat:
    """A thread's connection, which ends with the thread."""

    def __init__(self) -> None:
        self.channel: VlaEvalChannel | None = None
        self.url: str | None = None
        self.trial: TrialKey | None = None  # whose episode is under way
        self.facts: Mapping[str, Any] = {}

    def sit(self, url: str, channel: VlaEvalChannel) -> None:
        """Take a new connection."""
        self.url, self.channel, self.trial, self.facts = url, channel, None, channel.facts

    def leave(self) -> None:
        """Close the connection; the next one may be to another server."""
        channel, self.channel, self.url, self.trial = self.channel, None, None, None
        if channel is not None:
            channel.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end, modules may be gone
            self.leave()


def _action_of(answer: Mapping[str, Any]) -> Any:
    found = answer.get("actions", answer.get("action"))
    if found is None:
        raise InvalidRequestError(f"vla_eval: the answer has no actions, but {sorted(answer)!r:.200}")
    shape = np.shape(found)
    if shape not in ((ACTION_DIM,), (1, ACTION_DIM)):
        raise InvalidRequestError(f"vla_eval: the action has the shape {shape}, expected ({ACTION_DIM},)")
    return found


def _formats(spec: Any) -> dict[str, str]:
    if not isinstance(spec, Mapping):
        return {}
    return {part: str(said.get("format")) for part, said in spec.items() if isinstance(said, Mapping)}
