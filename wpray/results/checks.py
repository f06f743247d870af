"""Checks of values that readers rely on, made once when a run is loaded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wpray.errors import DamagedRunError
from wpray.results.columns import ColumnsError, check_version
from wpray.results.declarations import action_of, state_columns_of

# Values of run.json and of its config that readers use; null is the same as absent.
_INFO: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "state", "started_at", "written_at", "stop_reason", "git_commit", "host"), str),
    **dict.fromkeys(("renderer", "platform", "fingerprint"), str),
    **dict.fromkeys(("config", "outcome_fields", "versions", "hosts", "policy_files", "waypoint_space"), dict),
    **dict.fromkeys(("variations", "difficulty"), dict),
    "planned_episodes": int,
    "robot": str,
    "control_hz": (int, float),
    "privileged": bool,
}
_CONFIG: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("policy", "joint_checkpoint", "vlm_checkpoint", "ae_checkpoint"), str),
    "task_suite": (str, list),
    "num_trials_per_task": int,
    "num_steps_wait": int,
    "tasks": (list, dict),
    "env": dict,
    "policy_args": dict,
}
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_LARGEST = 10_000_000  # largest number of a task or trial, because a report has a row or column for each
_POSITIVE = ("task_id", "trial", "num_steps", "max_steps", "num_plans", "num_segments", "num_chunks")
_SECONDS = ("reset_s", "env_s", "render_s", "policy_wait_s", "wall_s")
_INDEX_OF = {"plan": "plan_index", "segment": "segment_index", "chunk": "chunk_index"}  # kind of decision -> column
_DECISION_NUMBERS = ("step", "asked_s", "wait_s", "queue_s", "compute_s", "planner_s", "expert_s")


def parse_info(data: bytes, name: str) -> dict[str, Any]:
    """Return the content of a run.json, whose name in messages is `name`.

    Raise DamagedRunError if it is not a run's, NewerSchemaError if a newer version wrote it.
    """
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(
            f"{name}: not readable ({' '.join(str(error).split())[:200]}); choose another output_dir"
        ) from error
    if not isinstance(info, dict):
        raise DamagedRunError(f"{name}: not a run's description; choose another output_dir")
    try:
        check_version(info.get("schema_version"), name)
    except ColumnsError as error:
        raise DamagedRunError(f"{name}: {error}; choose another output_dir") from error
    return info


def check_info(info: Mapping[str, Any], name: str) -> None:
    """Raise DamagedRunError if run.json, named `name` in messages, lacks a value or holds an impossible one."""
    for key in ("run_id", "config"):
        if info.get(key) is None:
            raise DamagedRunError(f"{name}: has no {key}, so it does not describe a run; name another folder")
    _check_types(info, _INFO, name, "")
    _check_types(info["config"], _CONFIG, name, "config.")
    for host, about in (info.get("hosts") or {}).items():
        if not isinstance(about, dict) or not isinstance(about.get("versions", {}), dict):
            raise DamagedRunError(f"{name}: hosts.{host} does not describe a host")
    action_of(info), state_columns_of(info)
    if not _is_space(info.get("waypoint_space")):
        raise DamagedRunError(f"{name}: waypoint_space has no scale and offset of numbers")


def check_episodes(episodes: pa.Table, name: str) -> None:
    """Raise DamagedRunError if the table, named `name` in messages, holds a value that no run writes."""
    for column in _POSITIVE:
        _refuse(pc.less(episodes[column], 0), f"{name}: column {column} is negative")
    for column in ("task_id", "trial"):
        _refuse(pc.greater(episodes[column], _LARGEST), f"{name}: column {column} is over {_LARGEST}")
    for column in _SECONDS:
        _refuse(pc.invert(_is_time(episodes[column])), f"{name}: column {column} is no time")
    for column in ("started_at", "ended_at"):
        kind = episodes[column].type
        early = pc.less(episodes[column], pa.scalar(_EARLIEST, kind))
        outside = pc.or_(early, pc.greater(episodes[column], pa.scalar(_LATEST, kind)))
        _refuse(outside, f"{name}: column {column} is no time of a run")
    solved = pc.fill_null(pc.cast(episodes["success"], pa.int8()), -1)
    expected = pc.if_else(pc.equal(episodes["status"], "error"), -1, pc.cast(_is_success(episodes), pa.int8()))
    _refuse(pc.not_equal(solved, expected), f"{name}: status and success contradict each other")


def check_decisions(decisions: pa.Table, name: str) -> None:
    """Raise DamagedRunError if the table, named `name` in messages, holds a value that no run writes."""
    for column in _DECISION_NUMBERS:
        _refuse(pc.invert(_is_time(decisions[column])), f"{name}: column {column} is no number from 0")
    _refuse(pc.less(decisions["batch_size"], 1), f"{name}: column batch_size is under 1")
    _refuse(pc.invert(pc.is_in(decisions["kind"], pa.array([*_INDEX_OF]))), f"{name}: column kind is odd")
    for kind, column in _INDEX_OF.items():
        lacking = pc.and_(pc.equal(decisions["kind"], kind), pc.is_null(decisions[column]))
        _refuse(lacking, f"{name}: column {column} is null for a {kind}")


def _is_success(episodes: pa.Table) -> Any:
    return pc.equal(episodes["status"], "success")


def _is_time(column: pa.ChunkedArray) -> Any:
    number = pc.cast(column, pa.float64())
    return pc.and_(pc.is_finite(number), pc.and_(pc.greater_equal(number, 0), pc.less(number, 1e9)))


def _refuse(wrong: Any, said: str) -> None:
    count = pc.sum(wrong).as_py() or 0
    if count:
        raise DamagedRunError(f"{said} in {count} of {len(wrong)} rows")


def _check_types(data: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], name: str, prefix: str) -> None:
    for key, kind in types.items():
        value = data.get(key)
        is_odd = isinstance(value, bool) and kind is not bool
        if value is not None and (is_odd or not isinstance(value, kind)):
            raise DamagedRunError(f"{name}: {prefix}{key} is a {type(value).__name__}, which no run has written")


def _is_space(space: Any) -> bool:
    if space is None:
        return True
    numbers = [space.get(name) for name in ("scale", "offset")]
    if not all(isinstance(values, list) and len(values) >= 3 for values in numbers):
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        for value in itertools.chain.from_iterable(numbers)
    )
