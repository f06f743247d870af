"""YAML files of the training code run as they are: each key means what it means there, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from wpray.cli.configuration import read_config
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import outcome_fields

MODEL: dict[str, Any] = {
    "model_action_dim": 32,
    "model_proprio_dim": 32,
    "horizon_steps": 32,
    "num_waypoints": 7,
    "ae_max_token_len": 64,
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "precision": "bfloat16",
    "norm_type": "q99",
}
# As eval_waypoint_joint_libero.yaml, its variants that plan again after 2 segments, and a joint training file that has
# got a section for the evaluator.
JOINT = MODEL | {
    "robot_type": "libero",
    "task_suite": "libero_10",
    "joint_checkpoint": "/CKPT/5000_vlm0.4792_ae0.1015",
    "dataset_statistics_path": "/DATA/dataset_statistics.json",
    "vlm_max_token_len": 256,
    "torch_compile": True,
    "center_crop": True,
    "center_crop_scale": 0.9,
    "num_trials_per_task": 5,
    "num_steps_wait": 10,
    "eval_seed": 7,
    "task_start": 0,
    "task_end": 10,
    "video_out_path": "/CKPT/5000_vlm0.4792_ae0.1015/eval_libero_videos",
}
REPLAN = JOINT | {"eval_seed": 42, "max_segments_per_replan": 2, "use_actual_proprio": True}
SECTION: dict[str, Any] = {
    "task_suite": None,
    "joint_checkpoint": None,
    "waypoint_decode": {
        "impl": "block",
        "compact_logits": True,
        "early_stop": True,
        "respect_prefix_pad": True,
        "forbid_terminal_first_waypoint": False,
        "profile": False,
    },
}
TRAINING = MODEL | {
    "robot_type": "libero",
    "robot_config_kwargs": {},
    "task_suite": "libero_10",
    "joint_checkpoint": "/CKPT/block",
    "dataset_statistics_path": "data/dataset_statistics.json",
    "max_duration": 32,
    "vlm_max_token_len": 320,
    "planner_mode": "block_ar",
    "planner_use_block_embed": True,
    "planner_block0_cond": "none",
    "goal_condition_mode": "none",
    "skip_masked_cameras": True,
    "eval": SECTION,
}


# With an adapter beside its base model, as the newest training runs leave them.
ADAPTER = TRAINING | {
    "pretrained_weight_path": "/BASE/pi05_base",
    "lora_enabled": True,
    "lora_rank": 16,
    "lora_alpha": 16.0,
    "lora_apply_to": "all",
    "vision_encoder_mode": "lora",
    "eval": SECTION | {"use_ema": False, "joint_checkpoint": "/CKPT/adapter"},
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(data: dict[str, Any], *options: str) -> Config:
        path = tmp_path / "eval.yaml"
        path.write_text(yaml.safe_dump(data))
        return read_config(["--config", str(path), *options])

    return read


def test_the_newest_evaluation_files_run_as_they_are(read: Any) -> None:
    config = read(JOINT)
    for name, value in JOINT.items():
        assert getattr(config, name) == value, name
    again = read(REPLAN)
    assert again.starts_from_actual and again.max_segments_per_replan == 2
    assert {"use_actual_proprio", "max_segments_per_replan", "eval_seed"} <= outcome_fields(again).keys()


def test_a_training_file_with_a_section_for_the_evaluator_runs_as_it_is(read: Any) -> None:
    config = read(TRAINING)
    assert (config.task_suite, config.joint_checkpoint) == ("libero_10", "/CKPT/block")  # null takes nothing away
    assert (config.planner_mode, config.temperature) == ("block_ar", 0.0)
    assert config.longest_plan_prompt == 320
    assert not config.forbid_terminal_first_waypoint


def test_a_training_file_of_an_adapter_runs_as_it_is(read: Any) -> None:
    config = read(ADAPTER)
    assert (config.joint_checkpoint, config.pretrained_weight_path) == ("/CKPT/adapter", "/BASE/pi05_base")
    assert (config.lora_enabled, config.lora_rank, config.lora_alpha, config.use_ema) == (True, 16, 16.0, False)
    assert (config.lora_apply_to, config.vision_encoder_mode) == ("all", "lora")
    assert read(TRAINING | {"eval": SECTION | {"lora_enabled": None}}).lora_enabled is False


def test_the_sections_values_count_before_those_outside_and_the_command_line_before_both(read: Any) -> None:
    section = SECTION | {
        "task_suite": "libero_goal",
        "joint_checkpoint": "/CKPT/9000",
        "segment_start_from": "actual",
        "replan_on_deviation": True,
        "deviation_threshold": 0.2,
        "deviation_metric": "linf",
        "stop_on_d0": True,
        "trial_start": 3,
        "num_trials_per_task": 10,
        "stop_after_successes": 4,
        "init_states_file": "/DATA/states.npz",
        "max_steps_override": 77,
        "disable_video": True,
        "waypoint_decode": {"impl": "block", "temperature": 0.5, "forbid_terminal_first_waypoint": True},
    }
    config = read(TRAINING | {"num_trials_per_task": 2, "eval": section}, "--trial_start", "5")
    assert (config.task_suite, config.joint_checkpoint) == ("libero_goal", "/CKPT/9000")
    assert (config.trial_start, config.num_trials_per_task, config.stop_after_successes) == (5, 10, 4)
    assert (config.deviation_threshold, config.deviation_metric) == (0.2, "linf")
    assert (config.temperature, config.forbid_terminal_first_waypoint) == (0.5, True)
    assert (config.env.max_steps, config.video.mode) == (77, "none")
    named = {"segment_start_from", "replan_on_deviation", "deviation_threshold", "deviation_metric", "stop_on_d0"}
    named |= {"trial_start", "stop_after_successes", "init_states_file", "temperature", "planner_mode"}
    named |= {"forbid_terminal_first_waypoint"}
    assert named <= outcome_fields(config).keys()
    assert not named & outcome_fields(Config()).keys()


def test_decode_settings_are_read_flat_too_and_nested_ones_win(read: Any) -> None:
    flat = {"waypoint_decode_impl": "compact", "waypoint_decode_temperature": 0.25}
    config = read(JOINT | flat)
    assert (config.planner_mode, config.temperature) == ("token_ar", 0.25)
    config = read(JOINT | flat | {"waypoint_decode": {"temperature": 0.75}})
    assert (config.planner_mode, config.temperature) == ("token_ar", 0.75)


def test_files_that_the_training_codes_evaluators_write_are_kept_elsewhere(
    read: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {"diagnostics_file": "d.json", "record_step_states": True, "step_states_file": "s.jsonl"}
    outputs |= {"collect_dir": "pickles", "collect_jpeg_quality": 95}
    others = {"ae_compile_mode": "max-autotune", "use_gripper_token": True, "existing_results_file": None}
    config = read(TRAINING | {"eval": SECTION | outputs | others})
    assert outcome_fields(config) == outcome_fields(read(TRAINING))
    said = [line for line in caplog.messages if "no such file is written" in line]
    assert [line.partition(":")[0] for line in said] == ["diagnostics_file", "step_states_file", "collect_dir"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval": {"trial_strat": 3}}, r"eval\.trial_strat: unknown key trial_strat: did you mean trial_start\?"),
        ({"eval": {"use_ema_weights": True}}, r"eval\.use_ema_weights: unknown key"),
        ({"eval": [1]}, "eval: must hold settings"),
        ({"batch_size": 64}, "unknown key batch_size"),
        ({"robot_config_kwargs": {"arm": 1}}, "robot_config_kwargs: .* it must be empty"),
        ({"max_duration": 16}, "max_duration: 16 is not understood: no other than 32"),
        ({"planner_block0_cond": "current_state"}, "planner_block0_cond: "),
        ({"eval": {"goal_condition_mode": "adarms_residual_v1"}}, "goal_condition_mode: "),
        ({"skip_masked_cameras": "yes please"}, "skip_masked_cameras: "),
        ({"eval": {"waypoint_decode": {"impls": "block"}}}, r"waypoint_decode\.impls: unknown; its keys are impl"),
        ({"eval": {"waypoint_decode": {"impl": "beam"}}}, r"waypoint_decode\.impl: beam; it is one of legacy, compact"),
        ({"eval": {"waypoint_decode": {"impl": "compact"}}}, "compact belongs to planner_mode token_ar, not block_ar"),
        ({"eval": {"waypoint_decode": {"profile": 3}}}, r"waypoint_decode\.profile: 3 is no value of it"),
        ({"waypoint_decode": {"temperature": 0.5}, "temperature": 0.2, "eval": None}, "contradicts temperature: 0.2"),
        ({"planner_mode": None, "waypoint_decode": {"impl": "jacobi", "temperature": 1}, "eval": None}, "jacobi finds"),
        ({"eval": {"existing_results_file": "r.json"}}, "existing_results_file: not read here, .* give trial_start"),
        ({"diagnostics_file": 3}, "diagnostics_file: 3 is not understood: it must be a path"),
        ({"eval": {"use_gripper_token": False}}, "use_gripper_token: False is not understood: .* token_layout"),
        ({"eval": {"disable_video": 3}}, "disable_video: 3 is neither true nor false"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(read: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        read(TRAINING | changes)
