"""Settings that an episode's outcome depends on, and how those of two runs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from wpray.benchmarks.factory import benchmark_name
from wpray.config import Config
from wpray.policies.factory import deciding_policy_args

# Settings of the training code's evaluators that change what a policy's success rate means: `compare` refuses to pair
# runs that differ in one.
EVALUATION_OPTIONS = (
    *("trial_start", "stop_after_successes", "max_segments_per_replan", "segment_start_from"),
    *("strict_step_budget", "stop_on_d0", "replan_on_deviation", "deviation_threshold", "deviation_metric"),
    *("temperature", "forbid_terminal_first_waypoint", "center_crop", "center_crop_scale", "noise", "eval_seed"),
    *("vlm_max_token_len", "ae_max_token_len"),
    *("latency.extra_ms", "latency.mode"),
)

# Settings that no episode's outcome depends on: where and how much runs, and what is recorded.
_NO_OUTCOME = frozenset(
    {
        "tasks",
        "task_start",
        "task_end",
        "num_trials_per_task",
        "num_parallel",
        "output_dir",
        "resume",
        "record",
        "video_out_path",
        "track",
        "track_project",
        "ray",
    }
    | {"video", "retry", "stop_when", "env.memory_gb", "env.render", "env.render_actors"}
    | {"batching.max_wait_ms", "batching.max_batch_size", "lora_dropout"}
)

_OF_POLICY = "policy_args"

# Behaviour of runs that were recorded before a setting existed. A run that behaves that way omits the setting, so
# that its folder can be resumed and compared by either version.
DONE_WITHOUT: dict[str, Any] = {
    "benchmark": "auto",
    "env.instruction": "file_name",
    "dataset_statistics_key": None,
    "joint_checkpoint": None,
    "checkpoint_file": "model",
    "token_layout": "auto",
    "lm_head_precision": "auto",
    "planner_use_block_embed": None,
    "lora_enabled": False,
    "pretrained_weight_path": None,
    "lora_rank": 16,
    "lora_alpha": None,
    "lora_use_rslora": False,
    "lora_apply_to": "all",
    "vision_encoder_mode": None,
    "train_vision_encoder": False,
    "lora_modules_to_skip": None,
    "lora_trainable_modules": None,
    "lora_inference_slim": True,
    "runtime_merge": False,
    "use_ema": False,
    "allow_stale_ema_forensics": False,
    "vlm_max_token_len": None,
    "ae_max_token_len": 64,
    "trial_start": 0,
    "stop_after_successes": None,
    "init_states_file": None,
    "planner_mode": "auto",
    "temperature": 0.0,
    "forbid_terminal_first_waypoint": False,
    "max_segments_per_replan": 0,
    "use_actual_proprio": False,
    "segment_start_from": "predicted",
    "strict_step_budget": True,
    "stop_on_d0": False,
    "replan_on_deviation": False,
    "deviation_threshold": 0.15,
    "deviation_metric": "l2",
    "center_crop": False,
    "center_crop_scale": None,
    "noise": "keyed",
    "eval_seed": None,
    "latency.extra_ms": 0.0,
    "latency.mode": "hold",
}


def outcome_fields(config: Config) -> dict[str, Any]:
    """Return the settings that outcomes depend on, by dotted name.

    Two runs that agree on them may share a result folder. `env.instruction` is resolved; settings of `DONE_WITHOUT` are
    left out where they have that value. So are settings of the policy that it declares to decide nothing.
    """
    flat: dict[str, Any] = {}
    whole = config.model_dump(mode="json")
    for name, value in (whole | {_OF_POLICY: deciding_policy_args(config, whole[_OF_POLICY])}).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items() if name not in _NO_OUTCOME}
        else:
            flat[name] = value
    flat["env.instruction"] = config.instruction_source
    if config.benchmark == benchmark_name(config.suites[0]):
        flat["benchmark"] = "auto"
    return {
        name: value
        for name, value in flat.items()
        if name not in _NO_OUTCOME and not (name in DONE_WITHOUT and DONE_WITHOUT[name] == value)
    }


def comparable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome fields of a run.json in a form that is equal for two runs that do the same.

    A setting that did not exist yet has the value of what was done; of settings with the same meaning, one is kept.
    """
    found = DONE_WITHOUT | dict(fields)
    if found.pop("use_actual_proprio"):
        found["segment_start_from"] = "actual"
    if not found["replan_on_deviation"]:
        found |= {name: DONE_WITHOUT[name] for name in ("deviation_threshold", "deviation_metric")}
    if not found["latency.extra_ms"]:
        found["latency.mode"] = DONE_WITHOUT["latency.mode"]
    return found


def differing_fields(theirs: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """Return name, their value and ours of every setting in which outcome fields differ from those of `config`.

    Settings that the policy declares to decide nothing do not count, also where `theirs` are older than that.
    """
    prefix = f"{_OF_POLICY}."
    given = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    kept = {f"{prefix}{name}": value for name, value in deciding_policy_args(config, given).items()}
    there = comparable({name: value for name, value in theirs.items() if not name.startswith(prefix)} | kept)
    here = comparable(outcome_fields(config))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [(name, there.get(name), here.get(name)) for name in names]


def fingerprint(config: Config) -> str:
    """Return 16 hex digits that identify `outcome_fields`."""
    text = json.dumps(outcome_fields(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
