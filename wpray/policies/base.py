"""The policy protocol: a stateless function from requests to replies, so that any replica can answer any request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from wpray.types import (
    BASE_AND_WRIST,
    PROPRIO_FIELDS,
    ActionSpec,
    ChunkReply,
    ChunkRequest,
    ImageSpec,
    ObservationSpec,
    PlanReply,
    PlanRequest,
    SegmentReply,
    SegmentRequest,
)

NOTICES = "wpray.notices"  # logger whose warnings, of a policy's process, come into the run's log


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a policy needs of the harness, what it sees and what its actions mean."""

    name: str
    images: bool  # needs camera images
    privileged: bool  # needs simulator truth; the results say so
    num_gpus: float  # GPUs of one replica
    max_batch_size: int
    kind: Literal["waypoints", "chunk"] = "waypoints"  # the protocol: WaypointPolicy or ChunkPolicy
    execute_steps: int = 0  # chunk: actions executed before it is asked again; 0: all of the chunk
    cameras: Mapping[str, ImageSpec] = field(default_factory=lambda: BASE_AND_WRIST)  # seen if `images`
    proprio: tuple[str, ...] = PROPRIO_FIELDS
    action: ActionSpec = field(default_factory=ActionSpec)
    # Chunk: another process answers, so that a wait for it is no sign of a hang. With a max_batch_size of 1, requests
    # are not batched here: many threads call `predict`, each with one request.
    remote: bool = False

    def __post_init__(self) -> None:
        """Copy the cameras, because a read-only view of a mapping cannot travel to another process."""
        object.__setattr__(self, "cameras", dict(self.cameras))

    @property
    def observation(self) -> ObservationSpec:
        """What the policy is shown."""
        return ObservationSpec(self.cameras if self.images else {}, self.proprio, self.privileged)


@dataclass(frozen=True, slots=True)
class Sources:
    """What a policy was loaded from, as far as its files' digests do not tell it."""

    facts: Mapping[str, Any] = field(default_factory=dict)  # for run.json
    lines: tuple[str, ...] = ()  # for the log
    warnings: tuple[str, ...] = ()


class Policy(Protocol):
    """Answers batches. A request's reply must not depend on the other requests of its batch.

    A request that cannot be answered raises; the caller then asks the others again one by one. InvalidRequestError
    says that the request itself is at fault: its trial becomes an error row at once. Anything else that is raised makes
    the process suspect, so that it is replaced and the trial is tried again. A policy may also have
    `prepare(request)`, which gives back a request of the same kind with what can be done before its batch; it is called
    from many threads while `plan` or `act` works, and raises for that request alone. One whose batches are padded may
    say to which sizes in `plan_sizes` and `segment_sizes`, ascending: where it pays, batches are made to fill them.
    One that was loaded from files lists them in `files`, and says in `sources` (Sources) what it took from them.
    """

    spec: PolicySpec

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """One reply a request, in order, each with the first segment's actions."""

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """One reply a request, in order."""


class ChunkPolicy(Protocol):
    """Answers batches with action chunks: observation in, H actions out, as nearly every VLA does.

    A reply must not depend on the other requests of its batch, and errors mean what Policy's mean. `prepare`, `files`
    and `sources` are read as Policy's are, and `chunk_sizes` as its `plan_sizes`.
    """

    spec: PolicySpec  # kind "chunk"

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply a request, in order."""


AnyPolicy = Policy | ChunkPolicy


class WaypointClient(Protocol):
    """What an episode sees of a policy that plans waypoints: one blocking call at a time."""

    spec: PolicySpec

    def plan(self, request: PlanRequest) -> PlanReply:
        """Return the plan and its first segment."""

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Return one segment."""


class ChunkClient(Protocol):
    """What an episode sees of a chunk policy: one blocking call at a time."""

    spec: PolicySpec

    def predict(self, request: ChunkRequest) -> ChunkReply:
        """Return one chunk."""


PolicyClient = WaypointClient | ChunkClient
