"""Values that travel between driver, environments and policy: frozen dataclasses of numpy arrays.

Units are metres, radians and seconds; positions are in MuJoCo's world frame; quaternions are (x, y, z, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]
ImageArray = NDArray[np.uint8]
EpisodeStatus = Literal["success", "failure", "error"]
# "request": no process of the policy can answer the request (InvalidRequestError); "actor": the env actor died.
FailureOrigin = Literal["policy", "request", "environment", "actor"]
EpisodeRow = Mapping[str, Any]  # row of episodes.parquet
PlanEnd = Literal["used_up", "zero_duration", "segment_limit", "deviation", "step_budget", "success", "truncated"]

ACTION_DIM = 7
PROPRIO_DIM = 8
POLICY_IMAGE_SIZE = 224
MAX_SEGMENT_STEPS = 32


class TaskKey(NamedTuple):
    """Identity of a task among all suites."""

    suite: str
    task_id: int


class TrialKey(NamedTuple):
    """Identity of a trial within a run: it names the trial's row, its files and its random numbers."""

    suite: str
    task_id: int
    init_state: int

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TrialKey:
        """Return the key of a row of episodes.parquet or decisions.parquet."""
        return cls(row["suite"], row["task_id"], row["trial"])

    @property
    def task(self) -> TaskKey:
        """Key of its task."""
        return TaskKey(self.suite, self.task_id)

    def __str__(self) -> str:
        return f"{self.suite} task {self.task_id} trial {self.init_state}"


@dataclass(frozen=True, slots=True)
class Task:
    """Task of a suite, as its benchmark describes it."""

    suite: str
    task_id: int
    name: str
    instruction: str
    num_trials: int  # initial states available
    max_steps: int  # control steps after the wait steps
    scene: str = ""  # tasks of one scene share what an environment compiles; empty: this task's own

    @property
    def key(self) -> TaskKey:
        """Identity among all suites."""
        return TaskKey(self.suite, self.task_id)


@dataclass(frozen=True, slots=True)
class Trial:
    """Identity of an episode: everything its outcome may depend on besides the configuration."""

    task: Task
    init_state: int  # index of the initial state; the column `trial` of the results
    seed: int  # the run's seed, the same for every trial
    own_state: tuple[float, ...] | None = None  # in place of the suite's own: time, qpos, qvel

    @property
    def key(self) -> TrialKey:
        """Identity within a run."""
        return TrialKey(self.task.suite, self.task.task_id, self.init_state)

    @property
    def label(self) -> str:
        """Text for people, such as `Task 3 pick_up_the_bbq_sauce trial 2`."""
        return f"Task {self.task.task_id} {self.task.name} trial {self.init_state}"


@dataclass(frozen=True, slots=True)
class ObjectState:
    """Privileged collision geometry of one object in the world frame, for scripted policies."""

    name: str
    position: FloatArray  # (3,) body origin, m
    footprint: FloatArray  # (K, 2) convex hull of its collision vertices seen from above, m
    bottom: float  # lowest collision vertex, m
    top: float  # highest collision vertex, m


@dataclass(frozen=True, slots=True)
class PrivilegedState:
    """Simulator truth that no camera shows; policies must request it, and the results name it."""

    eef_pos: FloatArray  # (3,)
    eef_rotation: FloatArray  # (3, 3) grip site
    finger_axis: FloatArray  # (3,) unit vector from one finger pad to the other
    objects: tuple[ObjectState, ...]
    target: str  # object to pick
    goal: str  # object or fixture to place it in


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Picture of one camera for a policy. The benchmark renders at its own size and then applies these changes."""

    height: int = POLICY_IMAGE_SIZE  # pixels
    width: int = POLICY_IMAGE_SIZE
    rotated: bool = True  # turned by 180 degrees from robosuite's array, as LIBERO's training data are
    resize: Literal["bilinear", "pad"] = "bilinear"  # pad: keep the aspect ratio, black borders
    crop_scale: float | None = None  # share of the area that is kept, from the middle; then resized again


BASE_AND_WRIST: Mapping[str, ImageSpec] = MappingProxyType({"base": ImageSpec(), "wrist": ImageSpec()})
PROPRIO_FIELDS = ("eef_pos", "eef_axis_angle", "gripper_qpos")  # 3 + 3 + 2 numbers: m, rad, m


@dataclass(frozen=True, slots=True)
class ObservationSpec:
    """Content of observations: what a policy requires, or what a benchmark provides."""

    cameras: Mapping[str, ImageSpec] = field(default_factory=lambda: BASE_AND_WRIST)  # role -> picture; empty: none
    proprio: tuple[str, ...] = PROPRIO_FIELDS  # in this order
    privileged: bool = False  # simulator truth


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """Meaning of an action's numbers. The policy's is compared with the benchmark's before a run."""

    dim: int = ACTION_DIM
    control: Literal["delta_eef", "absolute_eef", "joint"] = "delta_eef"
    rotation: Literal["axis_angle", "quaternion", "euler", "6d", "none"] = "axis_angle"
    gripper: Literal["positive_closes", "positive_opens", "none"] = "positive_closes"
    # Only a benchmark says these, so that a policy's are not compared with them.
    low: float | tuple[float, ...] = field(default=-1.0, compare=False)  # of every number, or of each
    high: float | tuple[float, ...] = field(default=1.0, compare=False)
    still: tuple[float, ...] | None = field(default=None, compare=False)  # action of the wait steps; None: zeros
    names: tuple[str, ...] = field(default=(), compare=False)  # of the numbers, for exported data sets

    def stand_still(self) -> FloatArray:
        """Return the action of the wait steps, and of a policy that does nothing."""
        return np.zeros(self.dim) if self.still is None else np.array(self.still, dtype=np.float64)

    def scaled(self, actions: FloatArray) -> FloatArray:
        """Return actions whose numbers are from -1 to 1 as actions between the bounds."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        scaled: FloatArray = (low + high) / 2 + (high - low) / 2 * actions
        return scaled


_EEF_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")
EEF_ACTION = ActionSpec(names=_EEF_NAMES)  # of an arm, as robosuite's OSC_POSE takes it


@dataclass(frozen=True, slots=True)
class Observation:
    """Content of a decision's request, sampled when the benchmark's own environments sample."""

    proprio: FloatArray  # (P,) the fields that were asked for; the usual ones are 8 numbers
    images: Mapping[str, ImageArray] = field(default_factory=dict)  # role of the camera -> (H, W, 3) as specified
    privileged: PrivilegedState | None = None

    @property
    def base_image(self) -> ImageArray | None:
        """(224, 224, 3) agentview, rotated and resized; None if not asked for."""
        return self.images.get("base")

    @property
    def wrist_image(self) -> ImageArray | None:
        """(224, 224, 3) eye-in-hand camera, rotated and resized; None if not asked for."""
        return self.images.get("wrist")


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """Content of an observation's pictures, for a process that has neither the environment nor its simulation."""

    model: str  # SHA-256 of the bytes of the compiled model that the pose belongs to
    pose: Mapping[str, NDArray[Any]]  # what pictures depend on besides the model, by names of the benchmark's own
    views: Mapping[str, tuple[str, ImageSpec]]  # role -> camera of the benchmark, and the picture of it


@dataclass(frozen=True, slots=True)
class Step:
    """Result of a control step."""

    terminated: bool  # the task is solved
    truncated: bool = False  # the environment ended the episode without success
    reward: float = 0.0
    progress: Mapping[str, float] = field(default_factory=dict)  # named parts of the goal: 1.0 where one holds


class WaypointSpace(Protocol):
    """Space of a policy's waypoints, with the pose that each stands for."""

    def state(self, proprio: FloatArray) -> Float32Array:
        """Return the waypoint that stands for the measured `proprio` (8,)."""

    def pose(self, state: Float32Array) -> tuple[Float32Array, bool]:
        """Return a state's position (m) and axis-angle (rad), (6,), and whether the gripper is open."""


@dataclass(frozen=True, slots=True)
class WaypointPlan:
    """Waypoints in the policy's normalized space, zero-padded to its model width."""

    start: Float32Array  # (D,) normalized current proprio
    waypoints: Float32Array  # (M, D)
    durations: IntArray  # (M,) control steps; < 0 skip, 0 ends the plan


@dataclass(frozen=True, slots=True)
class Segment:
    """Action chunk: executable environment actions of one segment, one row a control step."""

    actions: FloatArray  # (H, A), as the benchmark's ActionSpec says


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Request for waypoints; the reply also carries the first segment, which uses the same observation."""

    trial: Trial
    plan_index: int
    segment_index: int  # of the plan's first segment, counted over the episode
    observation: Observation


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """Request for the actions from one waypoint to the next."""

    trial: Trial
    plan_index: int
    segment_index: int  # counted over the episode
    observation: Observation
    start: Float32Array | None  # (D,) normalized; None: from where the observation shows the robot
    end: Float32Array  # (D,) normalized
    duration: int  # 1..32 control steps


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Request for the next actions of a chunk policy."""

    trial: Trial
    chunk_index: int  # counted over the episode
    observation: Observation
    memory: bytes | None = None  # from the last reply of the episode; None before the first


WaypointRequest = PlanRequest | SegmentRequest
PolicyRequest = WaypointRequest | ChunkRequest


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a request inside the policy."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_size: int = 1
    planner_s: float | None = None  # of compute_s, for a plan's waypoints
    expert_s: float | None = None  # of compute_s, for segments' actions


@dataclass(frozen=True, slots=True)
class PlanReply:
    """Answer to a PlanRequest; `first` is None when the plan executes nothing."""

    plan: WaypointPlan
    first: Segment | None
    timing: Timing = field(default_factory=Timing)
    space: WaypointSpace | None = None  # space of the plan's waypoints; None: segments' ends are not compared with them


@dataclass(frozen=True, slots=True)
class SegmentReply:
    """Answer to a SegmentRequest."""

    segment: Segment
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class ChunkReply:
    """Answer to a ChunkRequest."""

    actions: FloatArray  # (H, A) executable, one row a control step
    timing: Timing = field(default_factory=Timing)
    metrics: Mapping[str, float] = field(default_factory=dict)  # numbers by name for the episode's row; the last counts
    memory: bytes | None = None  # returned with the episode's next request, because any replica may answer that
    done: bool = False  # the policy ends the episode, and none of the actions is executed
    rest: FloatArray | None = None  # actions that would follow; executed only while a latency passes


PolicyReply = PlanReply | SegmentReply | ChunkReply
State = Mapping[str, NDArray[Any]]  # after a control step: one vector of floats for each of the benchmark's columns


@dataclass(frozen=True, slots=True)
class StateColumn:
    """Column of trajectories that a benchmark declares: one vector of the state after each control step."""

    name: str
    about: str
    unit: str = ""
    width: int | None = None  # None: the task decides
    record: Literal["light", "full"] = "light"  # full: only `record: full` keeps it, because only rendering needs it
    dtype: Literal["float64", "float32"] = "float64"


# Columns of a robot arm in MuJoCo. A run whose run.json names no columns has these.
ARM_COLUMNS = (
    StateColumn("eef_pos", "gripper site as observed, world frame", "m", 3),
    StateColumn("eef_quat", "hand orientation as observed (x, y, z, w), world frame", width=4),
    StateColumn("gripper_qpos", "finger joints as observed", "m", 2),
    StateColumn("qpos", "generalized positions after the step", "m, rad", record="full"),
    StateColumn("qvel", "generalized velocities after the step", "m/s, rad/s", record="full"),
    StateColumn("render_qpos", "positions that the step's images show", "m, rad", record="full"),
    StateColumn("render_site_alpha", "opacity of each site (a lit stove)", record="full", dtype="float32"),
)


@dataclass(frozen=True, slots=True)
class SceneState:
    """Fixture poses, which a trial's reset decides and no step changes."""

    body_pos: FloatArray  # (nbody, 3)
    body_quat: FloatArray  # (nbody, 4)


@dataclass(frozen=True, slots=True)
class Tracking:
    """Aim of a segment, and the robot's state after it."""

    planned_state: Float32Array  # (8,) in the waypoints' units; (7,) where the last number is the gripper, 1 open
    reached_state: Float32Array  # measured state in the same units
    planned_pose: Float32Array  # (6,) position, m, and axis-angle, rad
    reached_pose: Float32Array  # (6,)
    planned_open: bool  # the gripper
    reached_open: bool

    @property
    def error(self) -> Float32Array:
        """Return reached minus planned, by dimension, in the waypoints' units."""
        return self.reached_state - self.planned_state


@dataclass(frozen=True, slots=True)
class Decision:
    """One policy call of an episode; a row of decisions.parquet."""

    kind: Literal["plan", "segment", "chunk"]
    step: int  # control steps taken before it, wait steps included
    plan_index: int | None  # None for a chunk, as the next
    segment_index: int | None
    waypoints: Float32Array | None  # plan: (M, 8) normalized, or as wide as the proprio if that is wider
    durations: IntArray | None  # plan: (M,)
    waypoint_index: int | None  # segment: index of the waypoint that it aims at
    duration: int | None  # segment, chunk: control steps
    wait_s: float  # request to reply, seen by the environment
    timing: Timing
    asked_s: float = 0.0  # time of the request, seconds after the episode began
    plan_end: PlanEnd | None = None  # plan: reason for its end
    skipped: int | None = None  # plan: waypoints passed over for their negative duration
    steps: int | None = None  # segment, chunk: control steps executed
    tracking: Tracking | None = None  # segment: None if the policy's waypoints have no known space
    chunk_index: int | None = None  # chunk: counted over the episode
    latency_steps: int | None = None  # control steps between the observation and what it led to; None: no latency


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Control steps of an episode, wait steps included; N rows."""

    actions: FloatArray  # (N, A)
    states: tuple[State, ...]  # N; empty when recording is off
    scene: SceneState | None  # None: nothing is drawn but the states, or recording is off


@dataclass(frozen=True, slots=True)
class EpisodeTimes:
    """Seconds of an episode, by activity."""

    reset_s: float
    env_s: float
    render_s: float
    policy_wait_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Error of an attempt, made where it happens and kept as it is up to the trial's row."""

    origin: FailureOrigin
    kind: str  # class of the error
    message: str
    traceback: str = ""

    @property
    def text(self) -> str:
        """Message and traceback, as a row holds them."""
        return f"{self.message}\n{self.traceback}" if self.traceback else self.message

    @property
    def summary(self) -> str:
        """Kind and first line, for the log."""
        return f"{self.kind}: {(self.text.strip().splitlines() or [''])[0]}"

    def shortened(self, most: int) -> Failure:
        """Return the failure with at most `most` characters of text."""
        return Failure(self.origin, self.kind, self.text[:most])


@dataclass(frozen=True, slots=True)
class AttemptError:
    """Failed attempt of a trial that was followed by another."""

    attempt: int  # from 1
    worker: str
    failure: Failure

    def as_row(self) -> dict[str, Any]:
        """Return the entry of the column `attempt_errors`."""
        failure = self.failure
        return {
            "attempt": self.attempt,
            "origin": failure.origin,
            "kind": failure.kind,
            "message": failure.text,
            "worker": self.worker,
        }


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """Outcome of an episode and its record; errors are exceptions, not results."""

    trial: Trial
    success: bool
    num_steps: int  # env.step calls, wait steps included
    num_plans: int
    num_segments: int
    decisions: tuple[Decision, ...]
    trajectory: Trajectory
    times: EpisodeTimes
    metrics: Mapping[str, float] = field(default_factory=dict)  # numbers by name that environment and policy add
    num_chunks: int | None = None  # None: the policy's kind is another
    truncated: bool = False  # the environment ended the episode without success
    reward: float = 0.0  # sum of the steps' rewards


def first_executable(durations: IntArray) -> int | None:
    """Return the index of the waypoint that a plan executes first; None if a 0 or the end comes before it."""
    for index, duration in enumerate(durations):
        if duration == 0:
            return None
        if duration > 0:
            return index
    return None
