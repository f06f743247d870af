"""CPU actors on Ray that render videos, each keeping the task that it has compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from wpray.cluster.setup import demands, env_memory
from wpray.config import Config
from wpray.orchestration.actors import prepare_rendering
from wpray.orchestration.events import failure_of
from wpray.video.encode import encode
from wpray.video.frames import VideoJob, VideoStyle, frames

_ATTEMPTS = 2  # of a video whose actor died
_PATIENCE_S = 900.0  # without a single video: the machine hangs, or no node has room


class VideoActorImpl:
    """Holds one environment in a process of its own and renders recorded episodes with it."""

    def __init__(self, config: Config, style: VideoStyle) -> None:
        self._config, self._style = config, style
        self._env: Any = None

    def render(self, job: VideoJob, trajectory: bytes) -> bytes:
        """The MP4 of one episode, which the caller writes: this node may have no disk in common with it.

        Raises BadInputError on a machine or for a recording that cannot be rendered.
        """
        if self._env is None:
            prepare_rendering(self._config, name=str(os.getpid()))  # spread over the GPUs
            self._env = self._config.load_benchmark().make_environment(
                self._config.suites[0], self._config.env.protocol
            )
        self._env.load(job.task)
        return encode(frames(self._env, job, trajectory, self._style), self._style.fps, self._style.keyframe_every)


_remote: Any = ray.remote  # its stubs know only some of its options
VideoActor = _remote(num_cpus=1, max_restarts=0)(VideoActorImpl)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What came of a job: the MP4, or why there is none."""

    job: VideoJob
    video: bytes | None
    reason: str = ""


@dataclass(slots=True)
class _Seat:
    """An actor and the job that it has in hand."""

    actor: Any
    job: VideoJob
    attempt: int


@dataclass(slots=True)
class VideoPool:
    """Renders jobs on up to `size` actors; needs a Ray that is initialized."""

    config: Config
    style: VideoStyle
    size: int
    _seats: dict[Any, _Seat] = field(default_factory=dict)  # by the reference of the call in flight

    def render(self, jobs: Sequence[VideoJob]) -> Iterator[Rendered]:
        """Every job's result, as they come; ends its actors when done, or when the caller stops asking."""
        pending = sorted(jobs, key=lambda job: (job.task.task_id, job.trial))
        try:
            # Actors start at different tasks, so that each compiles few of them.
            for index in _spread(len(pending), self.size):
                self._give(self._start(), pending[index], 1)
            pending = [job for job in pending if all(seat.job is not job for seat in self._seats.values())]
            while self._seats:
                done, _ = ray.wait(list(self._seats), num_returns=1, timeout=_PATIENCE_S)
                if not done:
                    yield from _given_up([*(seat.job for seat in self._seats.values()), *pending])
                    return
                yield from self._finished(self._seats.pop(done[0]), done[0], pending)
        finally:
            for seat in self._seats.values():
                ray.kill(seat.actor, no_restart=True)
            self._seats.clear()

    def _finished(self, seat: _Seat, reference: Any, pending: list[VideoJob]) -> Iterator[Rendered]:
        actor = seat.actor
        try:
            result = Rendered(seat.job, ray.get(reference))
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayActorError):
                actor = self._start()
                if seat.attempt < _ATTEMPTS:
                    self._give(actor, seat.job, seat.attempt + 1)
                    return
            result = Rendered(seat.job, None, failure_of(error).reason)
        if pending:
            self._give(actor, _next(pending, seat.job), 1)
        else:
            ray.kill(actor, no_restart=True)
        yield result

    def _start(self) -> Any:
        config = self.config
        placed = {"num_cpus": config.ray.env_cpus, "memory": env_memory(config), **demands(config.ray.env_resources)}
        return VideoActor.options(**placed).remote(config, self.style)

    def _give(self, actor: Any, job: VideoJob, attempt: int) -> None:
        """Reads the recording only now: of all jobs, no more are in memory than there are actors."""
        self._seats[actor.render.remote(job, job.trajectory.read_bytes())] = _Seat(actor, job, attempt)


def _given_up(jobs: Sequence[VideoJob]) -> list[Rendered]:
    return [Rendered(job, None, f"no video was finished for {_PATIENCE_S:g} s") for job in jobs]


def _spread(jobs: int, actors: int) -> list[int]:
    """Where each actor starts among the jobs."""
    count = min(jobs, actors)
    return [index * jobs // count for index in range(count)]


def _next(pending: list[VideoJob], last: VideoJob) -> VideoJob:
    """The next job of the task that an actor has compiled; else the first one left."""
    same = next((job for job in pending if job.task.task_id == last.task.task_id), pending[0])
    pending.remove(same)
    return same
