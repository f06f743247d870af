"""`policy: process`: a class in a file of its own, run by another Python, which needs nothing of wpray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import NOTICES, PolicySpec, Sources
from wpray.policies.process import worker
from wpray.policies.remote import arrays
from wpray.policies.remote.answers import chunk_of
from wpray.policies.settings import NO_OUTCOME
from wpray.types import POLICY_IMAGE_SIZE, ChunkReply, ChunkRequest, ImageSpec

_NOTICES = logging.getLogger(NOTICES)
_LENGTH = struct.Struct("<Q")
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # variables of this Python, which would mislead another
_REQUEST_AT_FAULT = "InvalidRequestError"  # any class of that name, because the other Python has no wpray


class ProcessSettings(BaseModel):
    """Class, Python and observations of the policy."""

    python: str = Field(sys.executable, description="Python that runs it, 3.9 or later with numpy and msgpack")
    target: str = Field(pattern=r"^[\w.]+:\w+$", description="MODULE:CLASS; the class has predict(requests)")
    path: list[str] = Field(["."], description="folders in which the module is looked for")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    execute_steps: NonNegativeInt = Field(0, description="actions of a chunk that are executed, 0: all")
    batch_size: PositiveInt = Field(8, description="requests of a call at most")
    images: bool = Field(True, description="show both cameras")
    image_size: PositiveInt = Field(POLICY_IMAGE_SIZE, le=1024, description="height and width of both images")
    num_gpus: Annotated[NonNegativeFloat, NO_OUTCOME] = Field(0.0, description="GPUs that it takes")


class WorkerDiedError(RuntimeError):
    """End of the other Python, or of its connection."""


class ProcessPolicy:
    """Policy that passes batches to a worker. A dead worker is restarted, and its requests are repeated one by one."""

    Settings = ProcessSettings

    @classmethod
    def spec_of(cls, settings: ProcessSettings) -> PolicySpec:
        """Return the spec that the settings describe."""
        view = ImageSpec(settings.image_size, settings.image_size)
        return PolicySpec(
            "process",
            settings.images,
            privileged=False,
            num_gpus=settings.num_gpus,
            max_batch_size=settings.batch_size,
            kind="chunk",
            execute_steps=settings.execute_steps,
            cameras={"base": view, "wrist": view},
        )

    def __init__(self, settings: ProcessSettings) -> None:
        """Start the worker. Raise BadInputError if the class cannot be made."""
        self.spec, self._settings = self.spec_of(settings), settings
        self._worker = PolicyWorker(settings)
        versions = self._worker.versions
        facts = {"process": {"python": settings.python, "target": settings.target, **versions}}
        self.sources = Sources(facts, (f"process: {settings.target} runs in Python {versions.get('python')}",))
        self.files = self._module_file()

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request, in order. Raise the class's exception, by its name and traceback."""
        try:
            return self._asked(requests)
        except WorkerDiedError as death:
            _NOTICES.warning("process: %s; it is started again", death)
            self._worker.close()
            self._worker = PolicyWorker(self._settings)
            if len(requests) == 1:
                return self._asked(requests)
        return [self.predict([request])[0] for request in requests]

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _asked(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        replies = self._worker.call([_form(request) for request in requests])
        if len(replies) != len(requests):
            raise ValueError(f"{len(replies)} replies to {len(requests)} requests")
        return [ChunkReply(chunk_of("process", reply["actions"]), metrics=reply["metrics"]) for reply in replies]

    def _module_file(self) -> tuple[Path, ...]:
        """Return the class's own file, whose digest goes into run.json."""
        name = Path(*self._settings.target.partition(":")[0].split("."))
        found = [Path(folder).expanduser() / f"{name}.py" for folder in self._settings.path]
        return tuple(path for path in found if path.is_file())[:1]


class PolicyWorker:
    """A process of the other Python, and the connection to it."""

    def __init__(self, settings: ProcessSettings) -> None:
        """Start it and wait until its class is made. Raise BadInputError if that fails."""
        self._settings = settings
        self._link, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        command = [settings.python, "-u", worker.__file__, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except OSError as error:
            self._link.close()
            raise BadInputError(f"policy_args.python: cannot run {settings.python} ({error.strerror})") from error
        finally:
            theirs.close()
        self.versions = self._started()

    def call(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the class's replies. Raise WorkerDiedError, InvalidRequestError, or an error of the class's name."""
        try:
            self._send(arrays.pack(requests))
            answer = arrays.unpack(self._received())
        except (OSError, EOFError) as error:
            raise WorkerDiedError(f"the worker of {self._settings.target} died ({self._end()})") from error
        if "error" in answer:
            raise _same_kind(answer["error"])
        replies: list[dict[str, Any]] = answer["replies"]
        return replies

    def close(self) -> None:
        """Kill the process, which may be in code that never ends."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def _started(self) -> dict[str, str]:
        settings = self._settings
        folders = [str(Path(folder).expanduser().resolve()) for folder in settings.path]
        start = {"target": settings.target, "path": folders, "args": settings.args}
        try:
            self._send(json.dumps(start).encode())
            said: dict[str, Any] = json.loads(self._received())
        except (OSError, EOFError) as error:
            end = self._end()
            self.close()
            raise BadInputError(
                f"policy_args.python: {settings.python} ends at once ({end}); run it by hand"
            ) from error
        if "error" in said:
            self.close()
            reason = f"{said['error']['kind']}: {' '.join(said['error']['message'].split())[:300]}"
            place = _last_place(said["error"]["trace"])
            raise BadInputError(f"policy_args.target: {settings.target} cannot be made ({reason}{place})")
        return {str(name): str(value) for name, value in said.items()}

    def _send(self, data: bytes) -> None:
        self._link.sendall(_LENGTH.pack(len(data)) + data)

    def _received(self) -> bytes:
        return self._exactly(_LENGTH.unpack(self._exactly(_LENGTH.size))[0])

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._link.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(2)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "it still runs"


def _form(request: ChunkRequest) -> dict[str, Any]:
    """Return the map that the class receives for a request."""
    trial, seen = request.trial, request.observation
    about = {
        "suite": trial.task.suite,
        "task_id": trial.task.task_id,
        "init_state": trial.init_state,
        "seed": trial.seed,
    }
    shown = {"images": dict(seen.images), "proprio": seen.proprio, "instruction": trial.task.instruction}
    return {**shown, **about, "chunk_index": request.chunk_index}


def _same_kind(said: dict[str, str]) -> Exception:
    """Return an error of the same class name, with the other Python's traceback as its text."""
    text = f"{said['message']}\n{said['trace']}"
    if said["kind"] == _REQUEST_AT_FAULT:
        return InvalidRequestError(text)
    return type(said["kind"], (RuntimeError,), {})(text)  # type: ignore[no-any-return]


def _last_place(trace: str) -> str:
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return f", {places[-1][0]}:{places[-1][1]}" if places else ""
