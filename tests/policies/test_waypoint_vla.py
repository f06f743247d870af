"""The learned policy: preparation, batches, the protocol's details and wrong files."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.policies.vla import (
    DATA,
    golden_config,
    joint_config,
    observation,
    reply_bytes,
    segment_request,
    trial,
)
from wpray.config import Config
from wpray.errors import BadInputError, InvalidRequestError
from wpray.models import synthetic
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.units import waypoint_units
from wpray.types import PlanRequest, SegmentRequest


def test_a_batch_changes_answers_by_rounding_only(checkpoints: Path) -> None:
    policy = waypoint_vla.build(golden_config(checkpoints))
    rng = np.random.default_rng(2)
    requests = [segment_request(rng, i) for i in range(5)]
    together = policy.act(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = policy.act([request])[0]
        assert np.abs(alone.segment.actions - reply.segment.actions).max() < 1e-4


def test_prepared_requests_get_the_same_answers_also_when_asked_again(checkpoints: Path) -> None:
    """Of more requests than there are staging rows, while others come and go; a batch that failed is asked again."""
    policy = waypoint_vla.build(golden_config(checkpoints, batching={"max_batch_size": 2}))
    rng = np.random.default_rng(4)
    plans = [PlanRequest(trial(i), i, i, observation(rng)) for i in range(3)]
    segments = [segment_request(rng, i) for i in range(3)]
    plain = [reply_bytes(policy.plan([request])[0]) for request in plans]
    acted = [policy.act([request])[0].segment.actions.tobytes() for request in segments]
    ready_plans, ready_segments = ([policy.prepare(request) for request in some] for some in (plans, segments))
    assert len(policy._staging._free) == 0  # four rows, and two requests have memory of their own
    for _ in range(2):
        policy.prepare(segment_request(rng, 9))  # its memory is nobody else's
        assert [reply_bytes(policy.plan([request])[0]) for request in ready_plans] == plain  # type: ignore[list-item]
        assert [
            policy.act([request])[0].segment.actions.tobytes()
            for request in ready_segments  # type: ignore[list-item]
        ] == acted
    del ready_plans, ready_segments
    gc.collect()
    assert len(policy._staging._free) == 4


def test_what_cannot_be_prepared_says_why(checkpoints: Path) -> None:
    policy = waypoint_vla.build(golden_config(checkpoints))
    seen = observation(np.random.default_rng(5))
    for shown, reason in (
        (replace(seen, images={"base": seen.images["base"]}), "no images"),
        (replace(seen, images={**seen.images, "base": seen.images["base"][:112]}), "not uint8 of"),  # type: ignore[index]
        (replace(seen, proprio=np.array([*seen.proprio[:7], np.nan])), "proprio is not finite"),
        (replace(seen, proprio=seen.proprio[:7]), r"proprio has shape \(7,\)"),
    ):
        segment = replace(segment_request(np.random.default_rng(5), 0), observation=shown)
        for request in (PlanRequest(trial(0), 0, 0, shown), segment):
            with pytest.raises(InvalidRequestError, match=reason):
                policy.prepare(request)
    long = replace(trial(0), task=replace(trial(0).task, instruction="zyx " * 99))
    with pytest.raises(InvalidRequestError, match="tokens"):
        policy.prepare(PlanRequest(long, 0, 0, seen))


@pytest.mark.parametrize(("opened", "executed"), [(0.0, 1), (0.499999, 1), (0.5, 0), (0.500001, -1), (1.0, -1)])
def test_the_gripper_is_never_normalized_and_executed_as_the_protocol_says(
    checkpoints: Path, tmp_path: Path, opened: float, executed: float
) -> None:
    """-sign(2 g - 1): at exactly one half it is the sign of zero."""
    statistics = json.loads((DATA / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    statistics["action"] |= {"q01": [-2.0] * 7, "q99": [6.0] * 7}
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    config = golden_config(checkpoints, dataset_statistics_path=str(tmp_path / "statistics.json"))
    chunk = np.full((32, 32), 0.25, np.float32)
    chunk[:, 6] = opened
    actions = waypoint_vla._executable(chunk, waypoint_vla.build(config)._scalings.default)
    assert actions.shape == (32, 7)
    assert (actions[:, :6] == 3.0).all()  # (0.25 + 1) / 2 * 8 - 2
    assert (actions[:, 6] == executed).all()


def test_each_suite_is_normalized_by_its_own_data_set(checkpoints: Path, tmp_path: Path) -> None:
    """In one policy as in a policy of its own."""
    own = json.loads((DATA / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    other = json.loads(json.dumps(own))
    other["action"] |= {"q01": [-3.0] * 7, "q99": [9.0] * 7}
    other["proprio"]["q99"] = [value + 0.5 for value in own["proprio"]["q99"]]
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"libero_object_no_noops": own, "libero_goal_no_noops": other}))
    suites = ["libero_object", "libero_goal"]
    config = golden_config(checkpoints, dataset_statistics_path=str(path), task_suite=suites)
    both, answers = waypoint_vla.build(config), []
    for suite in suites:
        alone = waypoint_vla.build(config.model_copy(update={"task_suite": suite}))
        rng = np.random.default_rng(7)
        its = replace(trial(0), task=replace(trial(0).task, suite=suite))
        plan = PlanRequest(its, 0, 0, observation(rng))
        segment = replace(segment_request(rng, 0), trial=its, start=None)
        pair = [
            (reply_bytes(policy.plan([plan])[0]), policy.act([segment])[0].segment.actions.tobytes())
            for policy in (both, alone)
        ]
        assert pair[0] == pair[1]
        answers.append(pair[0])
    assert answers[0] != answers[1]
    facts = both.sources.facts["dataset_statistics"]["suites"]
    assert [facts[suite]["data_set"] for suite in suites] == ["libero_object_no_noops", "libero_goal_no_noops"]
    assert [line.split(":")[0] for line in both.sources.lines if "data set" in line] == suites
    assert both.space is None and waypoint_units(config) is None  # no single unit would be right


def test_a_duration_beyond_the_horizon_is_clamped(checkpoints: Path) -> None:
    policy = waypoint_vla.build(golden_config(checkpoints))
    request = segment_request(np.random.default_rng(6), 0)
    longest, longer, shorter = (
        policy.act([replace(request, duration=duration)])[0].segment.actions.tobytes() for duration in (32, 33, 31)
    )
    assert longest == longer != shorter


def test_no_batch_is_larger_than_the_environments_are_many(checkpoints: Path) -> None:
    assert waypoint_vla.spec_of(golden_config(checkpoints)).max_batch_size == 32
    assert waypoint_vla.spec_of(golden_config(checkpoints, num_parallel=10)).max_batch_size == 10
    assert waypoint_vla.spec_of(golden_config(checkpoints, ray={"num_env_actors": 400})).max_batch_size == 32


@pytest.fixture(scope="module")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert synthetic.main([str(folder), "--variant", "tiny", "--precision", "float32"]) == 0
    return folder


def test_a_synthetic_folder_is_all_that_a_run_needs(synthetic_folder: Path) -> None:
    config = Config.model_validate(yaml.safe_load((synthetic_folder / "config.yaml").read_text()))
    assert config.policy == "waypoint_vla"
    policy = waypoint_vla.build(config)
    rng = np.random.default_rng(3)
    replies = policy.plan([PlanRequest(trial(i), 0, 0, observation(rng)) for i in range(3)])
    for reply in replies:
        assert reply.first is not None
        assert reply.first.actions.shape == (32, 7)
        assert set(reply.first.actions[:, 6]) <= {-1.0, 0.0, 1.0}
        assert ((reply.plan.durations >= 8) & (reply.plan.durations <= 24)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"paligemma_variant": "gemma_2b"}, "paligemma_variant"),
        ({"action_expert_variant": "gemma_300m"}, "action_expert_variant"),
        ({"model_action_dim": 7}, "model_action_dim"),
        ({"horizon_steps": 16}, "horizon_steps"),
        ({"vlm_checkpoint": "nowhere"}, "nowhere"),
        ({"dataset_statistics_key": "libero"}, "dataset_statistics_key"),
        ({"ae_checkpoint": "{folder}/vlm"}, "lacks"),
        ({"tokenizer_path": "nowhere"}, "tokenizer_path"),
        ({"dataset_statistics_path": "nowhere"}, "dataset_statistics_path"),
    ],
)
def test_wrong_files_are_one_line(synthetic_folder: Path, changes: dict[str, str], said: str) -> None:
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    filled = {
        name: value.format(folder=synthetic_folder) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    with pytest.raises(BadInputError) as raised:
        waypoint_vla.build(Config.model_validate({**given, **filled}))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_says_what_its_answers_come_from(synthetic_folder: Path) -> None:
    """A run notes their content, and does not go on with others: statistics and tokenizer change answers, too."""
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    names = [str(path.relative_to(synthetic_folder)) for path in waypoint_vla.build(Config.model_validate(given)).files]
    assert names == ["vlm/model.safetensors", "ae/model.safetensors", "dataset_statistics.json", "tokenizer.model"]


def test_a_vlm_inside_the_action_experts_file_is_loaded_and_said_to_be(synthetic_folder: Path) -> None:
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    config = Config.model_validate(
        {**given, "vlm_checkpoint": given["ae_checkpoint"], "batching": {"deterministic": False}}
    )
    policy = waypoint_vla.build(config)
    assert policy.files[0] == policy.files[1] == synthetic_folder / "ae" / "model.safetensors"
    assert "action_in_proj.* (2)" in policy.sources.facts["vlm_checkpoint"]["left_out"]
    assert any("left out: action_in_proj.* (2)" in line for line in policy.sources.lines)


def test_real_weights_need_the_real_tokenizer(synthetic_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that is not marked as synthetic is not read with a small vocabulary."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(synthetic_folder, tmp_path / "real")
    file = tmp_path / "real" / "vlm" / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    with pytest.raises(BadInputError, match="vocabulary"):
        waypoint_vla.build(Config.model_validate({**given, "vlm_checkpoint": str(tmp_path / "real" / "vlm")}))


def test_a_joint_policy_says_what_it_found_and_which_file_it_passed_over(
    joint_checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(joint_checkpoints / "b", tmp_path / "b")
    policy = waypoint_vla.build(joint_config(tmp_path / "b"))
    assert policy.sources.facts["models"] == {
        "layout": "joint",
        "planner": "token_ar",
        "token_layout": "bins300",
        "duration": "token",
        "lm_head_precision": "float32",
    }
    assert policy.sources.facts["joint_checkpoint"]["chosen_because"] == "the only one"
    plain, merged = tmp_path / "b" / "model.safetensors", tmp_path / "b" / "model_merged.safetensors"
    shutil.copy(plain, merged)
    policy = waypoint_vla.build(joint_config(tmp_path / "b", checkpoint_file="model_merged"))
    found = policy.sources.facts["joint_checkpoint"]
    assert (found["path"], found["passed_over"]) == (str(merged), str(plain))
    assert found["chosen_because"] == "checkpoint_file: model_merged"
    assert policy.sources.warnings == (
        f"joint_checkpoint: {merged} is read (checkpoint_file: model_merged); {plain} beside it is not",
    )
    assert policy.files[0] == merged
    assert [path.name for path in policy.files[1:]] == ["dataset_statistics.json", "tokenizer.model"]


def test_a_joint_policys_first_segment_is_what_asking_for_it_gives(joint_checkpoints: Path) -> None:
    """From the plan's image features, to the bit; and a segment may start where the observation shows the robot."""
    policy = waypoint_vla.build(joint_config(joint_checkpoints / "b"))
    rng = np.random.default_rng(7)
    seen = observation(rng)
    (reply,) = policy.plan([PlanRequest(trial(1), 0, 0, seen)])
    assert reply.first is not None
    assert reply.plan.waypoints.shape == (7, 32)
    end, duration = reply.plan.waypoints[0], int(reply.plan.durations[0])
    for start in (reply.plan.start, None):
        (again,) = policy.act([SegmentRequest(trial(1), 0, 0, seen, start, end, duration)])
        assert np.array_equal(again.segment.actions, reply.first.actions)
    gone = replace(seen, proprio=np.full(8, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        policy.prepare(SegmentRequest(trial(1), 0, 0, gone, None, end, duration))
