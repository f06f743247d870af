"""Protocols of policies: stateless functions from requests to replies, so that any replica can answer any request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wpray.types import (
    BASE_AND_WRIST,
    PROPRIO_DIM,
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

if TYPE_CHECKING:
    from wpray.checks import CheckResult

NOTICES = "wpray.notices"  # logger whose warnings, of a policy's process, come into the run's log


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Needs of a policy, its observations and the meaning of its actions."""

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
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # role -> path or name; the first is that of its rows
    planner: str = ""  # waypoints: name of what plans, in the log; default: the policy's
    # Chunk: another process answers, so that a wait for it is no sign of a hang. With a max_batch_size of 1, requests
    # are not batched here: many threads call `predict`, each with one request.
    remote: bool = False
    servers: int = (
        0  # remote, not batched here: requests that its servers answer at once, one for each place; 0: unknown
    )

    def __post_init__(self) -> None:
        """Copy the mappings, because a read-only view of one cannot travel to another process."""
        object.__setattr__(self, "cameras", dict(self.cameras))
        object.__setattr__(self, "checkpoints", dict(self.checkpoints))

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that rows name; None if there is none."""
        return next(iter(self.checkpoints.values()), None)

    @property
    def observation(self) -> ObservationSpec:
        """Observations of the policy."""
        return ObservationSpec(self.cameras if self.images else {}, self.proprio, self.privileged)


@dataclass(frozen=True, slots=True)
class WaypointUnits:
    """Units of a policy's waypoints, for readers of its plans: proprio = waypoint * scale + offset."""

    scale: tuple[float, ...] = (1.0,) * PROPRIO_DIM  # by default, waypoints are observed proprio
    offset: tuple[float, ...] = (0.0,) * PROPRIO_DIM

    def __post_init__(self) -> None:
        """Refuse numbers that no reader could use."""
        numbers = [*self.scale, *self.offset]
        if not 3 <= len(self.scale) == len(self.offset) or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"scale and offset must be as many finite numbers, 3 or more, not {numbers}")


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """One of the doctor's checks that a policy brings, in the list that its `doctor_checks` returns."""

    name: str
    check: Callable[[], Sequence[CheckResult]]  # an empty list: it does not apply
    needs: frozenset[str] = frozenset()  # checks without which this one can only fail for the same reason
    quick: bool = False  # takes a moment, so that every run does it, too
    local: bool = True  # looks at files or devices of the machine: not done where a run joins a cluster


@dataclass(frozen=True, slots=True)
class Sources:
    """Sources of a policy beyond its files' digests."""

    facts: Mapping[str, Any] = field(default_factory=dict)  # for run.json
    lines: tuple[str, ...] = ()  # for the log
    warnings: tuple[str, ...] = ()


class Policy(Protocol):
    """Policy that answers batches. A reply must not depend on the other requests of its batch.

    A request that cannot be answered raises; the caller then repeats the others one by one. InvalidRequestError blames
    the request, and its trial becomes an error row at once. After any other exception, the process is replaced and the
    trial runs again. A policy may also have `prepare(request)`, which returns a request of the same kind with all work
    that can be done before its batch; many threads call it while `plan` or `act` computes, and it raises for that
    request only. A policy that pads batches may list the sizes in `plan_sizes` and `segment_sizes`, ascending, so that
    batches fill them where this is faster. A policy that was loaded from files lists them in `files`, and describes
    what it took from them in `sources` (Sources). One whose plans all have one `space` (WaypointSpace) may say so, for
    `wpray.serve`. One that computes on a GPU may have `gpu_memory()`, which returns the
    bytes that it takes there and the free ones; then a sweep loads the next checkpoint beside it where there is room.
    One whose plans are decoded in steps may have them started and answered between any two steps: `stepwise`
    (StepwisePlans, or None).
    """

    spec: PolicySpec

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Return one reply per request, in order, each with the first segment's actions."""

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """Return one reply per request, in order."""


class StepwisePlans(Protocol):
    """Plans that a policy decodes together although they did not start together (continuous batching).

    Replies have the bits of those of the policy's own methods, of which none is called while plans are under way. There
    is one caller at a time. After an exception, `clear` is called, and then `plan` and `act` for the same requests.
    """

    @property
    def slots(self) -> int:
        """Number of plans that may be under way together."""

    def start(self, requests: Sequence[PlanRequest]) -> list[Any]:
        """Start plans, and return what stands for each, in order."""

    def advance(self) -> list[Any]:
        """Compute a step of every plan; return those that are ready to be answered, which are no longer under way."""

    def answer(
        self, plans: Sequence[Any], segments: Sequence[SegmentRequest]
    ) -> Callable[[], tuple[list[PlanReply], list[SegmentReply]]]:
        """Begin to answer plans that are ready, and segments, which may share a batch with the plans' first ones.

        Return the function that waits for the replies. Other calls may come before it.
        """

    def clear(self) -> None:
        """Forget every plan under way."""


class ChunkPolicy(Protocol):
    """Policy that answers batches with action chunks: observation in, H actions out, as in nearly every VLA.

    A reply must not depend on the other requests of its batch. Errors, `prepare`, `files` and `sources` are those of
    Policy, and `chunk_sizes` corresponds to its `plan_sizes`.
    """

    spec: PolicySpec  # kind "chunk"

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return one reply per request, in order."""


AnyPolicy = Policy | ChunkPolicy


class WaypointClient(Protocol):
    """Client of a policy that plans waypoints, with one blocking call at a time."""

    spec: PolicySpec

    def plan(self, request: PlanRequest) -> PlanReply:
        """Return the plan and its first segment."""

    def act(self, request: SegmentRequest) -> SegmentReply:
        """Return one segment."""


class ChunkClient(Protocol):
    """Client of a chunk policy, with one blocking call at a time."""

    spec: PolicySpec

    def predict(self, request: ChunkRequest) -> ChunkReply:
        """Return one chunk."""


PolicyClient = WaypointClient | ChunkClient
