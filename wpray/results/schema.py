"""Columns of every table in a result folder, with their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from wpray.types import ActionSpec, StateColumn

# MAJOR.MINOR. A minor version adds nullable columns, which are null in files that lack them. A major version removes a
# column or changes its meaning, so that older readers must refuse the file.
SCHEMA_VERSION = "1.3"
VERSION_KEY = b"wpray_schema"  # in a file's metadata


def _field(name: str, kind: pa.DataType, about: str, unit: str = "", nullable: bool = False) -> pa.Field:
    metadata = {"description": about} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _schema(fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={VERSION_KEY: SCHEMA_VERSION})


_INSTANT = pa.timestamp("us", tz="UTC")
_ATTEMPT_ERROR_FIELDS = [
    _field("attempt", pa.int32(), "1 for the first attempt"),
    _field("origin", pa.string(), "policy | environment | actor: what failed"),
    _field("kind", pa.string(), "class of the error"),
    _field("message", pa.string(), "the error and its traceback, cut after some thousand characters"),
    _field("worker", pa.string(), "env actor that ran the attempt"),
]

EPISODE_FIELDS = [
    _field("run_id", pa.string(), "names the run; in run.json too"),
    _field("policy", pa.string(), "policy's name; 'privileged' policies say so in run.json"),
    _field("checkpoint", pa.string(), "the policy's checkpoint", nullable=True),
    _field("protocol", pa.string(), "evaluation protocol: env.protocol of the run"),
    _field("suite", pa.string(), "suite of the benchmark"),
    _field("task_id", pa.int32(), "index of the task in the suite"),
    _field("task_name", pa.string(), "the benchmark's name of the task"),
    _field("instruction", pa.string(), "language instruction given to the policy"),
    _field("trial", pa.int32(), "index of the initial state"),
    _field("seed", pa.int64(), "the run's seed"),
    _field("status", pa.string(), "success | failure | error"),
    _field("success", pa.bool_(), "null for an error, which is never counted as a failure", nullable=True),
    _field("num_steps", pa.int32(), "control steps taken, wait steps included", "control steps"),
    _field("max_steps", pa.int32(), "limit of control steps after the wait steps", "control steps"),
    _field("num_plans", pa.int32(), "plan requests"),
    _field("num_segments", pa.int32(), "segments executed"),
    _field("reset_s", pa.float64(), "bringing the scene to the trial's start", "s"),
    _field("env_s", pa.float64(), "stepping the simulator", "s"),
    _field("render_s", pa.float64(), "rendering", "s"),
    _field("policy_wait_s", pa.float64(), "waiting for the policy's replies", "s"),
    _field("wall_s", pa.float64(), "the whole episode", "s"),
    _field("attempt", pa.int32(), "1 for the first attempt"),
    _field("node", pa.string(), "host that ran the episode", nullable=True),
    _field("worker", pa.string(), "env actor that ran the episode", nullable=True),
    _field("started_at", _INSTANT, "start of this attempt, UTC"),
    _field("ended_at", _INSTANT, "end of this attempt, UTC"),
    _field("video_path", pa.string(), "video, relative to the run folder unless video_out_path is set", nullable=True),
    _field("error_type", pa.string(), "class of the error", nullable=True),
    _field("error_message", pa.string(), "the error and its traceback", nullable=True),
    # since 1.1
    _field(
        "attempt_errors",
        pa.list_(pa.struct(_ATTEMPT_ERROR_FIELDS)),
        "errors of the attempts that were retried; null if there were none",
        nullable=True,
    ),
    _field("metrics", pa.map_(pa.string(), pa.float64()), "numbers by name, of environment and policy", nullable=True),
    _field("trajectory_crc32", pa.int64(), "CRC-32 of the trajectory's file; null if none was recorded", nullable=True),
    _field("part_digest", pa.int64(), "first 8 bytes of the SHA-256 of the part that became this row", nullable=True),
    _field("session", pa.int32(), "index of the session that ran it in run.json; null in older rows", nullable=True),
    # since 1.2
    _field("num_chunks", pa.int32(), "chunk requests; null if the policy plans waypoints", nullable=True),
    # since 1.3
    _field("truncated", pa.bool_(), "the environment ended the episode without success; null: error", nullable=True),
    _field("reward", pa.float64(), "sum of the steps' rewards, wait steps included; null: error", nullable=True),
]
EPISODE_SCHEMA = _schema(EPISODE_FIELDS)

# Columns that must not depend on the number of actors, retries, crashes or batch sizes.
OUTCOME_COLUMNS = (
    *("policy", "protocol", "suite", "task_id", "task_name", "instruction", "trial", "seed", "status", "success"),
    *("num_steps", "max_steps", "num_plans", "num_segments", "num_chunks"),
    *("truncated", "reward"),
)

_STATE = pa.list_(pa.float32())
_NORMALIZED = "normalized proprio, 8 numbers, or 6 and the gripper (1 open)"
_POSE = pa.list_(pa.float32())  # six; pyarrow before 26 reads no null of a list with a fixed size
_DECISION_FIELDS = [
    _field("kind", pa.string(), "plan | segment | chunk (since 1.2)"),
    _field("step", pa.int32(), "control steps taken before it", "control steps"),
    _field("plan_index", pa.int32(), "which plan of the episode; chunk: null", nullable=True),
    _field("segment_index", pa.int32(), "which segment of the episode; chunk: null", nullable=True),
    _field("waypoints", pa.list_(pa.list_(pa.float32())), "plan: (M, 8), normalized proprio", nullable=True),
    _field("durations", pa.list_(pa.int32()), "plan: (M,)", "control steps", nullable=True),
    _field("waypoint_index", pa.int32(), "segment: the waypoint it aims at", nullable=True),
    _field("duration", pa.int32(), "segment, chunk: steps of it to be executed", "control steps", nullable=True),
    _field("asked_s", pa.float64(), "when it was asked, after the episode's start", "s"),
    _field("wait_s", pa.float64(), "request to reply as the environment sees it", "s"),
    _field("queue_s", pa.float64(), "waiting for a batch inside the policy", "s"),
    _field("compute_s", pa.float64(), "the batch's computation", "s"),
    _field("batch_size", pa.int32(), "requests answered together"),
    # since 1.2: null in older rows, and for policies whose waypoints have no known space
    _field("planner_s", pa.float64(), "plan: of compute_s, for the waypoints", "s", nullable=True),
    _field("expert_s", pa.float64(), "segment: of compute_s, for the actions", "s", nullable=True),
    _field(
        "plan_end",
        pa.string(),
        "plan: why it was followed no further: used_up | zero_duration | segment_limit | deviation | step_budget | "
        "success | truncated (by the environment)",
        nullable=True,
    ),
    _field("skipped_waypoints", pa.int32(), "plan: waypoints passed over for their negative duration", nullable=True),
    _field("steps_executed", pa.int32(), "segment, chunk: control steps executed", "control steps", nullable=True),
    _field("planned_state", _STATE, "segment: the waypoint it aims at", _NORMALIZED, nullable=True),
    _field("reached_state", _STATE, "segment: the robot after it", _NORMALIZED, nullable=True),
    _field("tracking_error", _STATE, "segment: reached_state minus planned_state", _NORMALIZED, nullable=True),
    _field("planned_pose", _POSE, "segment: position and axis-angle of the waypoint", "m, rad", nullable=True),
    _field("reached_pose", _POSE, "segment: position and axis-angle after it", "m, rad", nullable=True),
    _field("planned_open", pa.bool_(), "segment: whether the gripper was to be open at its end", nullable=True),
    _field("reached_open", pa.bool_(), "segment: whether the gripper was open at its end", nullable=True),
    _field("chunk_index", pa.int32(), "chunk: which one of the episode", nullable=True),
    # since 1.3
    _field(
        "latency_steps",
        pa.int32(),
        "control steps from `step` to the first that the answer decided; null without latency",
        "control steps",
        nullable=True,
    ),
]
_KEY_FIELDS = [EPISODE_SCHEMA.field(name) for name in ("run_id", "suite", "task_id", "trial")]
DECISION_SCHEMA = _schema([*_KEY_FIELDS, *_DECISION_FIELDS])

# Part of an episode: its row and its decisions in one file, so that both appear at once or not at all.
PART_SCHEMA = _schema(
    [*EPISODE_FIELDS, pa.field("decisions", pa.list_(pa.struct(_DECISION_FIELDS)), nullable=False)],
)
# In a file's metadata.
TRAJECTORY_CRC32 = b"trajectory_crc32"  # in parts of schema 1: of the trajectory's file, if there is one
COLUMNS_CRC32 = b"wpray_columns"  # in parts since 1.1: of names and types, which no checksum of Parquet covers
MERGED_DIGEST = b"wpray_merged"  # in both merged tables since 1.1: of their rows' keys and part_digest

_CONTROLS = {"delta_eef": "delta position", "absolute_eef": "position", "joint": "joints"}
_GRIPPERS = {"positive_closes": "gripper (1 closes)", "positive_opens": "gripper (1 opens)"}
_NUMBERS = {"float64": pa.float64(), "float32": pa.float32()}


def trajectory_schema(
    columns: Sequence[StateColumn], action: ActionSpec, widths: Mapping[str, int] | None = None
) -> pa.Schema:
    """Return the schema of a trajectory: one row per control step, with a benchmark's state columns.

    `widths`: of the columns that declare none. Without one, a column's lists have any length.
    """
    uneven = isinstance(action.low, tuple) or isinstance(action.high, tuple)
    bounds = "" if uneven else f"{action.low:g} to {action.high:g}"
    return _schema(
        [
            _field("step", pa.int32(), "control step, from 0; the wait steps come first"),
            _field("action", pa.list_(pa.float64(), action.dim), _meaning(action), bounds),
            *(_field(column.name, _vector(column, widths or {}), column.about, column.unit) for column in columns),
        ]
    )


def _meaning(action: ActionSpec) -> str:
    delta = "delta " if action.control == "delta_eef" else ""
    rotation = "" if action.rotation == "none" else f"{delta}{action.rotation.replace('_', '-')}"
    return ", ".join(filter(None, (_CONTROLS.get(action.control), rotation, _GRIPPERS.get(action.gripper))))


def _vector(column: StateColumn, widths: Mapping[str, int]) -> pa.DataType:
    return pa.list_(_NUMBERS[column.dtype], column.width or widths.get(column.name, -1))
