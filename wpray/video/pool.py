"""Pool of CPU actors on Ray that render videos; each keeps the task that it has compiled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from wpray.cluster.setup import demands
from wpray.config import Config
from wpray.orchestration.actors import prepare_rendering
from wpray.orchestration.events import failure_of
from wpray.video.encode import encode
from wpray.video.frames import VideoJob, VideoStyle, frames

_MAX_ATTEMPTS = 2  # per video, because its actor may die
_STALL_S = 900.0  # after so long without a finished video, the machine hangs or no node has room


class VideoActorImpl:
    """Actor that renders recorded episodes with an environment of its own."""

    def __init__(self, config: Config, style: VideoStyle) -> None:
        self._config, self._style = config, style
        self._env: Any = None

    def render(self, job: VideoJob, trajectory: bytes) -> bytes:
        """Return the MP4 of an episode; the caller writes it, because nodes may share no disk.

        Raise BadInputError if this machine cannot render or the recording is incomplete.
        """
        if self._env is None:
            prepare_rendering(self._config, name=str(os.getpid()))  # the name spreads actors over the GPUs
            self._env = self._config.load_benchmark().make_environment(
                self._config.suites[0], self._config.env.protocol
            )
        self._env.load(job.task)
        return encode(frames(self._env, job, trajectory, self._style), self._style.fps, self._style.keyframe_every)


_remote: Any = ray.remote  # untyped, because Ray's stubs lack some of its options
VideoActor = _remote(num_cpus=1, max_restarts=0)(VideoActorImpl)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Result of a job: the MP4, or the reason why there is none."""

    job: VideoJob
    video: bytes | None
    reason: str = ""


@dataclass(slots=True)
class _Call:
    """Job that an actor is rendering."""

    actor: Any
    job: VideoJob
    attempt: int
    since: float


@dataclass(slots=True)
class VideoPool:
    """Pool of up to `size` actors that render jobs. Ray must be initialized.

    With `budget_s`, a job is left out if it would probably end later than so many seconds after the first began.
    """

    config: Config
    style: VideoStyle
    size: int
    budget_s: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    _calls: dict[Any, _Call] = field(default_factory=dict)  # calls in flight, by Ray's reference
    _began: float = 0.0
    _last_s: float = 0.0  # duration of the last finished call

    def render(self, jobs: Sequence[VideoJob]) -> Iterator[Rendered]:
        """Yield results in order of completion. End the actors afterwards, also when the caller stops early."""
        pending = sorted(jobs, key=lambda job: (job.status != "failure", job.task.key, job.trial))
        self._began = self.clock()
        try:
            # Actors start at different tasks, so that each compiles few of them.
            for index in _spread(max(len(_first_status(pending)), min(len(pending), self.size)), self.size):
                self._submit(self._start(), pending[index], 1)
            pending = [job for job in pending if all(call.job is not job for call in self._calls.values())]
            while self._calls:
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=_STALL_S)
                if not done:
                    yield from _abandon([*(call.job for call in self._calls.values()), *pending])
                    return
                yield from self._finish(self._calls.pop(done[0]), done[0], pending)
        finally:
            for call in self._calls.values():
                ray.kill(call.actor, no_restart=True)
            self._calls.clear()

    def _finish(self, call: _Call, reference: Any, pending: list[VideoJob]) -> Iterator[Rendered]:
        """Yield the result of `call`, unless it runs again, and submit the actor's next job."""
        actor, self._last_s = call.actor, self.clock() - call.since
        try:
            result = Rendered(call.job, ray.get(reference))
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayActorError):
                actor = self._start()
                if call.attempt < _MAX_ATTEMPTS:
                    self._submit(actor, call.job, call.attempt + 1)
                    return
            result = Rendered(call.job, None, failure_of(error).reason)
        if pending and self.clock() - self._began + self._last_s <= self.budget_s:
            self._submit(actor, take_next(pending, call.job), 1)
        else:
            ray.kill(actor, no_restart=True)
        yield result

    def _start(self) -> Any:
        config = self.config
        resources = {"num_cpus": config.ray.env_cpus, "memory": config.env_memory, **demands(config.ray.env_resources)}
        return VideoActor.options(**resources).remote(config, self.style)

    def _submit(self, actor: Any, job: VideoJob, attempt: int) -> None:
        """Read the recording and send it. It is not read earlier, so memory holds at most one recording per actor."""
        self._calls[actor.render.remote(job, job.trajectory.read_bytes())] = _Call(actor, job, attempt, self.clock())


def _abandon(jobs: Sequence[VideoJob]) -> list[Rendered]:
    return [Rendered(job, None, f"no video was finished for {_STALL_S:g} s") for job in jobs]


def _spread(jobs: int, actors: int) -> list[int]:
    """Return the index of the job with which each actor starts."""
    count = min(jobs, actors)
    return [index * jobs // count for index in range(count)]


def take_next(pending: list[VideoJob], last: VideoJob) -> VideoJob:
    """Remove and return the next job: a failure's if there is one, and of the task of `last`, which is compiled."""
    failures = _first_status(pending)
    same = next((job for job in failures if job.task.key == last.task.key), failures[0])
    pending.remove(same)
    return same


def _first_status(jobs: Sequence[VideoJob]) -> list[VideoJob]:
    return [job for job in jobs if job.status == jobs[0].status]
