"""What a policy says of its files beyond their digests: for the log, run.json and the doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.models.checkpoint_files import expert_shapes, vlm_shapes, write_hollow, write_hollow_shards
from wpray.checks import CheckResult
from wpray.config import Config
from wpray.doctor.checks import quick
from wpray.policies.waypoint_vla import doctor
from wpray.policies.waypoint_vla.model_files import open_files, sources_of
from wpray.run.machine import check_machine

FILES = Path(__file__).parent.parent / "data"


@pytest.fixture
def hollow(tmp_path: Path) -> dict[str, Any]:
    """Settings of a policy whose checkpoints hold no data."""
    write_hollow(tmp_path / "vlm" / "model.safetensors", vlm_shapes())
    write_hollow(tmp_path / "ae" / "model.safetensors", expert_shapes())
    shutil.copy(FILES / "statistics" / "bridge_only.json", tmp_path / "statistics.json")
    return {
        "vlm_checkpoint": str(tmp_path / "vlm"),
        "ae_checkpoint": str(tmp_path / "ae"),
        "dataset_statistics_path": str(tmp_path / "statistics.json"),
        "tokenizer_path": str(FILES / "rollout" / "tokenizer.model"),
        "paligemma_variant": "tiny_2b",
        "action_expert_variant": "tiny_300m",
    }


def _sources(config: Config) -> Any:
    return sources_of(config, open_files(config))


def _found(config: Config, name: str) -> list[CheckResult]:
    return [result for result in quick(config) if result.name == name]


def test_another_robots_statistics_are_warned_of_and_named(hollow: dict[str, Any], tmp_path: Path) -> None:
    config = Config(**hollow)
    (result,) = doctor.check_statistics(config)
    assert result.status == "warn"
    told = f"{tmp_path}/statistics.json: data set bridge_orig, which is not named after libero_object: dataset_statisti"
    assert f"dataset_statistics_path: {told}" in result.text
    sources = _sources(config)
    assert sources.facts["dataset_statistics"]["data_set"] == "bridge_orig"
    assert len(sources.facts["dataset_statistics"]["sha256"]) == 64
    assert any("data set bridge_orig" in line and "numbers c461e264" in line for line in sources.lines)
    assert sources.warnings == (), "the doctor's line is the run's warning"
    there = _sources(Config(**hollow, ray={"address": "auto"}))
    assert len(there.warnings) == 1 and "not named after libero_object" in there.warnings[0]


def test_the_setting_that_names_them_ends_the_warning(hollow: dict[str, Any]) -> None:
    config = Config(**hollow, dataset_statistics_key="bridge_orig")
    assert doctor.check_statistics(config)[0].status == "pass"
    assert _sources(config).facts["dataset_statistics"]["fits_suite"] is True
    failed = _found(Config(**hollow, dataset_statistics_key="bridge_origin"), "statistics")
    assert [result.status for result in failed] == ["fail"]
    assert "dataset_statistics_key: " in failed[0].text and "did you mean bridge_orig?" in failed[0].text


def test_a_run_warns_before_it_starts(hollow: dict[str, Any]) -> None:
    _, odd = check_machine(Config(**hollow, task_suite="fake", policy="waypoint_vla"))
    assert not [line for line in odd if "not named after" in line], "a made-up suite has no statistics of its own"
    lines = [result.text for result in quick(Config(**hollow)) if result.status == "warn"]
    assert [line for line in lines if "data set bridge_orig, which is not named after libero_object" in line]


def test_what_was_left_out_of_a_vlms_file_is_listed(hollow: dict[str, Any]) -> None:
    config = Config(**{**hollow, "vlm_checkpoint": hollow["ae_checkpoint"]})
    sources = _sources(config)
    assert "paligemma_with_expert.gemma_expert.* (25)" in sources.facts["vlm_checkpoint"]["left_out"]
    (line,) = [line for line in sources.lines if line.startswith("vlm_checkpoint: ")]
    assert "read out of an action expert's structure; left out: action_in_proj.* (2)" in line
    assert json.loads(json.dumps(sources.facts)) == sources.facts
    vlm, _, same = doctor.check_models(config)
    assert "left out: action_in_proj.* (2)" in vlm.text
    assert same.status == "warn" and "are the same file" in same.text
    assert [result.status for result in doctor.check_models(Config(**hollow))] == ["pass", "pass"]


def test_the_doctor_counts_the_tensors_of_all_shards(hollow: dict[str, Any], tmp_path: Path) -> None:
    write_hollow_shards(tmp_path / "shards", vlm_shapes())
    vlm, _ = doctor.check_models(Config(**{**hollow, "vlm_checkpoint": str(tmp_path / "shards")}))
    assert "model.safetensors.index.json: 59 tensors (59 F32)" in vlm.text
