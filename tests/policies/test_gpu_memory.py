"""What the full-size models take of a GPU, computed from their layout.

Measured with batches of ten, all of CUDA's included: 13.8 GB in bfloat16, 18.4 GB with the VLM in float32.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_weights import write_checkpoints, write_joint
from wpray.config import Config
from wpray.models.checkpoint import Checkpoint
from wpray.models.config import (
    ActionExpertConfig,
    Precision,
    TensorManifest,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.policies.waypoint_vla import doctor, weights

STATISTICS = Path(__file__).parents[1] / "data" / "rollout" / "dataset_statistics.json"
JOINT_STATISTICS = Path(__file__).parents[1] / "data" / "golden_joint" / "dataset_statistics.json"
_SCORED_ROWS = 256 + 34  # of the embedding table, which the VLM keeps in float32, too
_MEASURED_GB = {"float32": 18.4, "bfloat16": 13.8}


def _config(folder: Path, vlm_precision: Precision, precision: Precision, **changes: object) -> Config:
    files = {
        "vlm_checkpoint": str(folder / "vlm"),
        "ae_checkpoint": str(folder / "ae"),
        "dataset_statistics_path": str(STATISTICS),
    }
    return Config.model_validate({**files, "vlm_precision": vlm_precision, "precision": precision, **changes})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_weights_take_what_the_doctor_says(tmp_path: Path, precision: Precision) -> None:
    write_checkpoints(tmp_path)
    tiny = {"paligemma_variant": "tiny_2b", "action_expert_variant": "tiny_300m"}
    for model in weights.read(_config(tmp_path, precision, precision, **tiny)):
        loaded = model.file.tensors(torch.device("cpu"), precision)
        assert model.num_bytes == sum(tensor.nbytes for _, tensor in loaded)


def _full(manifest: TensorManifest, text: object, precision: Precision) -> weights.ModelWeights:
    checkpoint = Checkpoint(Path("model.safetensors"), {name: name for name in manifest}, manifest)
    return weights.ModelWeights("model", checkpoint, text, precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(("vlm_precision", "limit_gb"), [("float32", 22), ("bfloat16", 15)])
def test_both_models_and_ten_episodes_fit(vlm_precision: Precision, limit_gb: float) -> None:
    """With the VLM in float32, as the reference's evaluations have it, a card of 24 GB is enough."""
    config = _config(Path(), vlm_precision, "bfloat16", num_parallel=10)
    vlm, expert = VlmConfig.full(), ActionExpertConfig.full()
    planner = _full(vlm_manifest(vlm, "bfloat16"), vlm.text, vlm_precision)
    actor = _full(action_expert_manifest(expert, "bfloat16"), expert.text, "bfloat16")
    working = weights.working_memory(config, planner, actor) + 4 * _SCORED_ROWS * vlm.text.width
    needed_gb = (planner.num_bytes + actor.num_bytes + working + doctor._CUDA) / 1e9
    assert needed_gb < limit_gb
    assert needed_gb == pytest.approx(_MEASURED_GB[vlm_precision], abs=0.5)


def test_a_joint_models_weights_count_once(tmp_path: Path) -> None:
    write_joint(tmp_path, "b")
    files = {"joint_checkpoint": str(tmp_path), "dataset_statistics_path": str(JOINT_STATISTICS)}
    tiny = {"paligemma_variant": "tiny_2b", "action_expert_variant": "tiny_300m"}
    config = Config.model_validate({**files, **tiny})
    both = weights.distinct(*weights.read(config))
    assert [model.name for model in both] == ["joint model (bins300)"]
    (result,) = doctor.check_models(config)
    assert result.status == "pass"
    loaded = both[0].file.tensors(torch.device("cpu"), "bfloat16")
    assert both[0].num_bytes == sum(tensor.nbytes for _, tensor in loaded)
