"""The configuration: same meaning for existing files, one clear line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wpray.cli.configuration import field_names, read_config, validate
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import fingerprint, outcome_fields

EXISTING = """
robot_type: libero
task_suite: libero_object
vlm_checkpoint: /models/vlm    # or .../checkpoints/waypoint_vlm_libero/5000
ae_checkpoint: /models/ae
dataset_statistics_path: /data/dataset_statistics.json
model_action_dim: 32
model_proprio_dim: 32
horizon_steps: 32
num_waypoints: 7
max_token_len: 256
paligemma_variant: gemma_2b
action_expert_variant: gemma_300m
precision: bfloat16
norm_type: q99
vlm_precision: bfloat16
torch_compile: true
num_trials_per_task: 3
num_steps_wait: 10
num_parallel: 10
video_out_path: data/libero/videos_wp
"""
# Each mapping merges three times the one before.
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}, *a{n}]}}\n" for n in range(40))


def test_an_existing_config_works_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "eval_waypoint_libero.yaml"
    path.write_text(EXISTING)
    config = read_config(["--config", str(path)])
    assert config.policy == "waypoint_vla"
    assert config.num_env_actors == 10
    assert config.video_out_path == "data/libero/videos_wp"


def test_without_config_it_is_the_quickstart() -> None:
    config = read_config([])
    assert (config.policy, config.task_suite, config.num_trials_per_task) == ("scripted", "libero_object", 1)


def test_the_command_line_wins_over_the_file_field_by_field(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nray:\n  num_env_actors: 2\n  address: auto\nvideo.fps: 20\n")
    config = read_config(["--config", str(path), "--ray.num_env_actors", "5", "--tasks", "0-2,7"])
    assert (config.seed, config.ray.num_env_actors, config.ray.address) == (3, 5, "auto")
    assert (config.video.fps, config.tasks) == (20, [0, 1, 2, 7])


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--task_suit", "x"], "did you mean --task_suite?"),
        (["--num_env_actors", "3"], "did you mean --ray.num_env_actors?"),
        (["--seed", "-1"], "seed"),
        (["--tasks", "-3"], "tasks"),
        (["--tasks", "a"], "tasks"),
        (["--num_trials_per_task", "0"], "num_trials_per_task"),
        (["--env.renderer", "glx"], "'osmesa' or 'egl'"),
        (["--policy", "waypoint_vla"], "needs vlm_checkpoint"),
        (["--task_suite", "../../etc"], "task_suite"),
        (["--retry.stall_s", "nan"], "retry.stall_s"),
        (["--num_parallel", "2", "--ray.num_env_actors", "3"], "num_parallel"),
        (["--config"], "--config"),
        (["--config", "/does/not/exist.yaml"], "No such file"),
        (["--config", ""], "--config: the name is empty"),
        (["--config= "], "--config: the name is empty"),
        (["--config", "/dev"], "Is a directory"),
        (["--config", "/dev/zero"], "a device"),
        (["--ray", '{"address": "auto"}', "--ray.num_env_actors", "2"], "--ray: is given beside --ray.num_env_actors"),
        (["--env.memory_gb=3", '--env={"renderer": "egl"}'], "--env: is given beside --env.memory_gb"),
        (["--env", '{"memory_gb": 3}', "--env", '{"renderer": "egl"}'], "--env: is given beside another"),
        (["--output_dir", ""], "output_dir: must be a file name"),
        (["--video_out_path", " "], "video_out_path: must be a file name"),
        (["--env.max_steps", str(10**30)], "env.max_steps: Input should be less than or equal to 100000"),
        (["--env.memory_gb", "1e308"], "env.memory_gb"),
        (["--num_parallel", "100000"], "num_parallel: Input should be less than or equal to 10000"),
        (["--ray.num_env_actors", "100000"], "ray.num_env_actors"),
        (["--ray.num_policy_actors", "100000"], "ray.num_policy_actors"),
        (["--ray.env_resources", "a=1e300"], "ray.env_resources: a"),
        (["--ray.env_resources", '{" ": 1}'], "ray.env_resources"),
        (["--retry.stall_s", "0.01"], "retry.stall_s: Input should be greater than or equal to 1"),
        (["--stop_when.reference_rate", "0.5", "--stop_when.difference", "0.5"], "stop_when: difference: no rate"),
        (["--stop_when.reference_rate", "0.9", "--stop_when.difference", "0.95"], "give under 0.9"),
        (["--robot_type", "franka"], "robot_type: there is no benchmark 'franka'; use one of libero, "),
        (["stray"], "stray"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(argv: list[str], hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_config(argv)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: [b", "- 1", "x", "\x00", "task_suite: *nowhere", "1: 2", "a:\n\t- b", "!!python/object:os.x {}"]
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        read_config(["--config", str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("seed: 1\nseed: 2", "key seed is given twice"),
        ("seed: 1\nseed: 1", "key seed is given twice"),
        ("ray: {env_cpus: 1, env_cpus: 2}", "key env_cpus is given twice"),
        ("ray:\n  env_resources: {a: 1, b: 1, a: 2}", "key a is given twice"),
        ("tasks: [{a: 1, a: 2}]", "key a is given twice"),
        ("ray.address: auto\nray: {address: auto}", "ray.address is given twice"),
        ("ray: {address: auto}\nray.address: auto", "ray.address is given twice"),
        ("ray: '{}'\nray.address: auto", "ray is given twice"),
        ("num_parallel: true", "num_parallel: must not be true or false"),
        ("seed: false", "seed: must not be true or false"),
        ("tasks: [0, true]", "tasks: must not be true or false"),
        ("retry: {stall_s: true}", "retry.stall_s: must not be true or false"),
        ("ray.num_policy_actors: true", "ray.num_policy_actors: must not be true or false"),
        ("ray: {env_resources: {a: true}}", "ray.env_resources: must not be true or false"),
        ("a: &a [*a]", "an alias stands for what it is a part of"),
        (MERGE_BOMB, "its aliases stand for over"),
    ],
)
def test_a_file_whose_meaning_is_not_clear_is_one_line(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        read_config(["--config", str(path)])
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_is_none_in_the_file_is_not_dropped_for_one_field_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("ray: 3")
    with pytest.raises(BadInputError, match="ray: must hold its fields, not 3"):
        read_config(["--config", str(path), "--ray.num_env_actors", "3"])


def test_anchors_merge_keys_and_empty_groups_still_work(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("ray:\nray.env_resources: &few {a: 1, b: 2}\nray.policy_resources: {<<: *few, b: 3}\nenv: {}\n")
    config = read_config(["--config", str(path), "--ray", '{"env_cpus": 2}', "--batching.deterministic", "1"])
    assert (config.ray.env_resources, config.ray.policy_resources) == ({"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert config.ray.env_cpus == 2


@pytest.mark.parametrize(("reference", "difference"), [(0.95, 0.1), (0.9, 0.5), (0.03, 0.2)])
def test_a_difference_that_one_side_leaves_room_for_is_no_mistake(reference: float, difference: float) -> None:
    rule = {"reference_rate": reference, "difference": difference}
    assert Config.model_validate({"stop_when": rule}).stop_when.difference == difference


def test_outcomes_depend_on_the_fields_that_say_so() -> None:
    base = Config()
    same = read_config(["--ray.num_env_actors", "7", "--num_trials_per_task", "5", "--video.mode", "none"])
    other = read_config(["--seed", "1"])
    assert fingerprint(base) == fingerprint(same) != fingerprint(other)
    assert "env.protocol" in outcome_fields(base)


def test_where_instructions_are_from_is_part_of_what_outcomes_depend_on_unless_it_is_as_it_always_was() -> None:
    """Folders of runs that were recorded before the setting existed are resumed by the same command."""
    suite = ["--policy", "noop", "--task_suite"]
    for same in ([], ["--env.instruction", "auto"], ["--env.instruction", "file_name"]):
        assert "env.instruction" not in outcome_fields(read_config([*suite, "libero_goal", *same]))
    assert (
        outcome_fields(read_config([*suite, "libero_goal", "--env.instruction", "bddl"]))["env.instruction"] == "bddl"
    )
    assert outcome_fields(read_config([*suite, "libero_goal_lan"]))["env.instruction"] == "bddl"
    kept = read_config([*suite, "libero_goal_lan", "--env.instruction", "file_name"])
    assert "env.instruction" not in outcome_fields(kept)
    assert kept.instruction_source == "file_name"


def test_help_lists_every_field() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from wpray.cli.configuration import read_config; read_config(['--help'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    missing = [name for name in field_names() if f"--{name}" not in done.stdout]
    assert not missing


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wpray.cli.configuration import read_config; read_config([]); "
        "print([name for name in ('ray', 'torch', 'mujoco', 'pyarrow', 'libero') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PAIR = {"vlm_checkpoint": "v", "ae_checkpoint": "a", "dataset_statistics_path": "d"}
JOINT = {"joint_checkpoint": "j", "dataset_statistics_path": "d"}


def test_a_folder_of_a_version_without_todays_settings_can_be_resumed() -> None:
    """Pinned: fingerprints that those versions wrote. A setting that is added and not at its default shows."""
    assert fingerprint(Config()) == "556d2d30bf808a2f"
    assert fingerprint(Config.model_validate(PAIR)) == "cc8fc76eaf64d303"
    changed = outcome_fields(Config(center_crop=True, center_crop_scale=0.9, noise="reference", eval_seed=7))
    assert changed.keys() - outcome_fields(Config()).keys() == {
        "center_crop",
        "center_crop_scale",
        "noise",
        "eval_seed",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({**PAIR, **JOINT}, "joint_checkpoint and vlm_checkpoint exclude each other"),
        ({"joint_checkpoint": "j"}, "policy waypoint_vla needs dataset_statistics_path"),
        ({**JOINT, "vlm_precision": "float32"}, "vlm_precision is of a pair"),
        ({"center_crop": True}, "center_crop needs center_crop_scale"),
        ({"noise": "reference"}, "noise: reference needs eval_seed"),
        ({"use_actual_proprio": True, "segment_start_from": "predicted"}, "give one of them"),
    ],
)
def test_settings_that_contradict_one_another_say_so(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        validate(dict(given))


def test_either_name_of_a_setting_means_the_same() -> None:
    assert Config(use_actual_proprio=True).starts_from_actual
    assert Config(segment_start_from="actual").starts_from_actual
    assert not Config().starts_from_actual
    assert Config.model_validate({**JOINT, "precision": "float32", "vlm_precision": "float32"}).policy == "waypoint_vla"
    assert Config(max_token_len=100).longest_plan_prompt == 100
    assert Config(max_token_len=100, vlm_max_token_len=320).longest_plan_prompt == 320


def test_the_robot_type_of_a_training_file_may_be_any_benchmarks_and_decides_nothing() -> None:
    assert Config(robot_type="fake").suites == Config().suites == ("libero_object",)
