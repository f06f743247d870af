"""Synthetic checkpoints: the exact layout, written piece by piece."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.policies.vla import observation, trial
from tests.tiny_weights import state_dict
from wpray.config import Config
from wpray.models import random_weights, synthetic
from wpray.models.checkpoint import open_action_expert, open_vlm
from wpray.models.config import ActionExpertConfig, Precision, VlmConfig, action_expert_manifest, vlm_manifest
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.types import PlanRequest

TABLE = "paligemma.lm_head.weight"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_file_written_in_pieces_holds_what_each_name_means(tmp_path: Path, precision: Precision) -> None:
    manifest = vlm_manifest(VlmConfig.tiny(), precision)
    random_weights.write_random(manifest, 3, tmp_path, {TABLE: [7, 256767]}, piece=1_000_003)
    expected = state_dict(manifest, 3)
    expected[TABLE][[7, 256767]] = 0
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def test_both_files_are_read_as_checkpoints_and_marked(tmp_path: Path) -> None:
    synthetic.write(tmp_path, "tiny", "bfloat16")
    for checkpoint, config, expected in (
        (*open_vlm(tmp_path / "vlm"), VlmConfig.tiny()),
        (*open_action_expert(tmp_path / "ae"), ActionExpertConfig.tiny()),
    ):
        assert config == expected
        assert checkpoint.synthetic


def test_a_full_size_file_has_the_tiny_ones_names_at_the_published_sizes() -> None:
    """By its header alone: 20 GB are not for a test."""
    for full, tiny, size_gb in (
        (vlm_manifest(VlmConfig.full(), "bfloat16"), vlm_manifest(VlmConfig.tiny(), "bfloat16"), 5.85),
        (
            action_expert_manifest(ActionExpertConfig.full(), "bfloat16"),
            action_expert_manifest(ActionExpertConfig.tiny(), "bfloat16"),
            7.48,
        ),
    ):
        layout = random_weights._layout(full)
        assert tiny.keys() <= full.keys()
        assert max(entry["data_offsets"][1] for entry in layout.values()) / 1e9 == pytest.approx(size_gb, abs=0.01)
        assert len(json.dumps(layout)) < 10**6


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    code = (
        "import sys, resource; from pathlib import Path; from wpray.models.random_weights import write_random;"
        "write_random({'a.weight': ((int(sys.argv[2]), 1024), 'bfloat16')}, 0, Path(sys.argv[1]), piece=2**20);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for rows in (1024, 100 * 1024):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(rows)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 50_000  # KiB; the tensor has 200 MB


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert synthetic.run_command(synthetic.main, [str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("layout", ["two", "joint", "block"])
def test_a_folder_of_each_layout_is_all_that_a_policy_needs(tmp_path: Path, layout: str) -> None:
    assert synthetic.main([str(tmp_path), "--layout", layout, "--precision", "float32"]) == 0
    policy = waypoint_vla.build(Config.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())))
    found = policy.sources.facts["models"]
    assert (found["layout"], found["planner"]) == {
        "two": ("two", "token_ar"),
        "joint": ("joint", "token_ar"),
        "block": ("joint", "block_ar"),
    }[layout]
    (reply,) = policy.plan([PlanRequest(trial(0), 0, 0, observation(np.random.default_rng(3)))])
    assert reply.first is not None
    assert ((reply.plan.durations >= 8) & (reply.plan.durations <= 24)).all()
