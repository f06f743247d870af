"""Encoding of an episode as Parquet bytes by the worker that ran it; the driver only writes them."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wpray.results.columns import checksum
from wpray.results.replans import replan_lines
from wpray.results.schema import COLUMNS_CRC32, PART_SCHEMA, trajectory_schema
from wpray.types import (
    ARM_COLUMNS,
    EEF_ACTION,
    ActionSpec,
    AttemptError,
    Decision,
    EpisodeResult,
    EpisodeStatus,
    Failure,
    SceneState,
    State,
    StateColumn,
    Tracking,
    Trajectory,
    Trial,
    TrialKey,
)

RecordMode = Literal["full", "light", "none"]


@dataclass(frozen=True, slots=True)
class EpisodeContext:
    """Run, worker and times of an episode, for its row."""

    run_id: str
    policy: str
    checkpoint: str | None
    protocol: str
    node: str | None
    worker: str | None
    attempt: int
    started_at: datetime
    ended_at: datetime
    attempt_errors: tuple[AttemptError, ...] = ()  # of earlier attempts
    session: int | None = None  # number of the session in run.json
    planner: str = ""  # name of what plans, in the log; default: the policy's
    state_columns: tuple[StateColumn, ...] = ARM_COLUMNS  # the benchmark's
    action: ActionSpec = EEF_ACTION


@dataclass(frozen=True, slots=True)
class EncodedEpisode:
    """Rows of a finished trial, for the driver."""

    key: TrialKey
    status: EpisodeStatus
    num_steps: int
    wall_s: float
    part: bytes
    trajectory: bytes | None
    error: str | None = None  # type and first line, for the log
    utilisation: tuple[float, float] = (0.0, 0.0)  # seconds stepping or rendering, seconds waiting for the policy
    replans: tuple[str, ...] = ()  # one line each, for the log
    retried: tuple[str, ...] = ()  # kinds of errors of earlier attempts


def encode_episode(result: EpisodeResult, context: EpisodeContext, record: RecordMode) -> EncodedEpisode:
    """Return the encoded rows of a finished episode."""
    status: EpisodeStatus = "success" if result.success else "failure"
    times = result.times
    row = _common(result.trial, context) | {
        "status": status,
        "success": result.success,
        "num_steps": result.num_steps,
        "num_plans": result.num_plans,
        "num_segments": result.num_segments,
        "num_chunks": result.num_chunks,
        "truncated": result.truncated,
        "reward": result.reward,
        "reset_s": times.reset_s,
        "env_s": times.env_s,
        "render_s": times.render_s,
        "policy_wait_s": times.policy_wait_s,
        "wall_s": times.wall_s,
        "metrics": [(str(name), float(value)) for name, value in result.metrics.items()] or None,
        "decisions": [_decision_row(decision) for decision in result.decisions],
    }
    keep = record != "none" and len(result.trajectory.states) > 0
    trajectory = _trajectory_bytes(result.trajectory, context, record) if keep else None
    busy = (times.env_s + times.render_s + times.reset_s, times.policy_wait_s)
    return EncodedEpisode(
        key=result.trial.key,
        status=status,
        num_steps=result.num_steps,
        wall_s=times.wall_s,
        part=_part_bytes(row, trajectory),
        trajectory=trajectory,
        utilisation=busy,
        replans=replan_lines(context.planner or context.policy, result.decisions),
        retried=_kinds(context),
    )


def encode_error(trial: Trial, context: EpisodeContext, failure: Failure) -> EncodedEpisode:
    """Return the encoded row of a trial that has no outcome."""
    nothing = {"num_steps": 0, "num_plans": 0, "num_segments": 0, "decisions": []}
    times = dict.fromkeys(("reset_s", "env_s", "render_s", "policy_wait_s", "wall_s"), 0.0)
    error = {"status": "error", "success": None, "error_type": failure.kind, "error_message": failure.text}
    row = _common(trial, context) | nothing | times | error
    part = _part_bytes(row, None)
    return EncodedEpisode(trial.key, "error", 0, 0.0, part, None, failure.summary, retried=_kinds(context))


def scene_from_metadata(metadata: Mapping[bytes, bytes]) -> SceneState | None:
    """Return the fixture poses in the schema metadata of a full trajectory file; None if it has none."""
    if b"scene" not in metadata:
        return None
    poses = np.frombuffer(base64.b64decode(metadata[b"scene"]), dtype=np.float64).reshape(-1, 7)
    return SceneState(poses[:, :3].copy(), poses[:, 3:].copy())


def _common(trial: Trial, context: EpisodeContext) -> dict[str, Any]:
    task = trial.task
    return {
        "run_id": context.run_id,
        "policy": context.policy,
        "checkpoint": context.checkpoint,
        "protocol": context.protocol,
        "suite": task.suite,
        "task_id": task.task_id,
        "task_name": task.name,
        "instruction": task.instruction,
        "trial": trial.init_state,
        "seed": trial.seed,
        "max_steps": task.max_steps,
        "attempt": context.attempt,
        "node": context.node,
        "worker": context.worker,
        "started_at": context.started_at,
        "ended_at": context.ended_at,
        "attempt_errors": [error.as_row() for error in context.attempt_errors] or None,
        "session": context.session,
    }


def _kinds(context: EpisodeContext) -> tuple[str, ...]:
    return tuple(error.failure.kind for error in context.attempt_errors)


def _decision_row(decision: Decision) -> dict[str, Any]:
    timing = decision.timing
    return {
        "kind": decision.kind,
        "step": decision.step,
        "plan_index": decision.plan_index,
        "segment_index": decision.segment_index,
        "waypoints": None if decision.waypoints is None else decision.waypoints.tolist(),
        "durations": None if decision.durations is None else decision.durations.tolist(),
        "waypoint_index": decision.waypoint_index,
        "duration": decision.duration,
        "asked_s": decision.asked_s,
        "wait_s": decision.wait_s,
        "queue_s": timing.queue_s,
        "compute_s": timing.compute_s,
        "batch_size": timing.batch_size,
        "chunk_index": decision.chunk_index,
        "planner_s": timing.planner_s,
        "expert_s": timing.expert_s,
        "plan_end": decision.plan_end,
        "skipped_waypoints": decision.skipped,
        "steps_executed": decision.steps,
        "latency_steps": decision.latency_steps,
        **({} if decision.tracking is None else _tracking_columns(decision.tracking)),
    }


def _tracking_columns(tracking: Tracking) -> dict[str, Any]:
    return {
        "planned_state": tracking.planned_state.tolist(),
        "reached_state": tracking.reached_state.tolist(),
        "tracking_error": tracking.error.tolist(),
        "planned_pose": tracking.planned_pose.tolist(),
        "reached_pose": tracking.reached_pose.tolist(),
        "planned_open": tracking.planned_open,
        "reached_open": tracking.reached_open,
    }


def _part_bytes(row: dict[str, Any], trajectory: bytes | None) -> bytes:
    """Encode a part with the checksum of its trajectory, so that a missing or foreign trajectory is noticed."""
    crc32 = None if trajectory is None else zlib.crc32(trajectory)
    filled = {name: row.get(name) for name in PART_SCHEMA.names} | {"trajectory_crc32": crc32}
    schema = PART_SCHEMA.with_metadata(PART_SCHEMA.metadata | {COLUMNS_CRC32: checksum(PART_SCHEMA)})
    return parquet_bytes(pa.Table.from_pylist([filled], schema=schema))


def _trajectory_bytes(trajectory: Trajectory, context: EpisodeContext, record: RecordMode) -> bytes:
    declared = context.state_columns
    columns = [column for column in declared if record in ("full", column.record)]
    values = {column.name: _recorded(trajectory.states, column) for column in columns}
    schema = trajectory_schema(columns, context.action, {name: found.shape[1] for name, found in values.items()})
    values["action"] = trajectory.actions
    arrays = [pa.array(np.arange(len(trajectory.states), dtype=np.int32))]
    arrays += [_fixed_lists(values[field.name], field.type) for field in schema if field.name != "step"]
    if len(columns) == len(declared) and trajectory.scene is not None:
        poses = np.concatenate([trajectory.scene.body_pos, trajectory.scene.body_quat], axis=1)
        schema = schema.with_metadata(schema.metadata | {b"scene": base64.b64encode(poses.tobytes())})
    return parquet_bytes(pa.Table.from_arrays(arrays, schema=schema))


def _recorded(states: Sequence[State], column: StateColumn) -> NDArray[Any]:
    """Return (N, width): a column's vectors. Raises ValueError if the environment's states are not as declared."""
    if any(column.name not in state for state in states):
        raise ValueError(f"Environment.state() lacks {column.name}, which the benchmark's state_columns declare")
    shapes = sorted({np.shape(state[column.name]) for state in states})
    shape = shapes[0]
    if len(shapes) > 1 or len(shape) != 1 or column.width not in (None, shape[0]):
        wanted = f"({column.width},)" if column.width else "one width"
        raise ValueError(f"Environment.state(): {column.name} has shape {shape}, expected {wanted} at every step")
    return np.stack([state[column.name] for state in states]).astype(column.dtype, copy=False)


def _fixed_lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
    if values.shape[1] == 0:
        return pa.array([[]] * len(values), type=kind)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a Parquet file with zstd and floats split by byte: high bytes repeat, which halves a trajectory."""
    sink = io.BytesIO()
    floats = [path for field in table.schema for path in _float_paths(field)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=6,
        use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type)],
        use_byte_stream_split=floats,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _float_paths(field: pa.Field) -> list[str]:
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        return [f"{field.name}.list.element"]
    return []
