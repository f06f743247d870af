"""A folder that LeRobot's pi0 saved, read without LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
from safetensors.numpy import save_file as save_numbers
from safetensors.torch import load_file, save_file
from transformers import PI0Config

from tests.policies.pi0.test_answers import built, configured
from tests.policies.pi0.test_checkpoint import lerobot_name
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy
from wpray.policies.pi0 import lerobot_folder
from wpray.policies.pi0.spec import Settings
from wpray.testing.policy_requests import first_requests

STATE_FILE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
CONFIG = {  # as LeRobot 0.4.4 writes it, without what concerns training
    "type": "pi0",
    "n_obs_steps": 1,
    "input_features": {
        "observation.images.image": {"type": "VISUAL", "shape": [3, 256, 256]},
        "observation.images.image2": {"type": "VISUAL", "shape": [3, 256, 256]},
        "observation.state": {"type": "STATE", "shape": [8]},
        "observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 224, 224]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "dtype": "float32",
    "chunk_size": 8,
    "n_action_steps": 8,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "num_inference_steps": 3,
    "min_period": 0.004,
    "max_period": 4.0,
    "image_resolution": [224, 224],
    "empty_cameras": 1,
    "tokenizer_max_length": 48,
}


@pytest.fixture
def folder(pi0_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint as LeRobot would have saved it; its two networks stand for gemma_2b and gemma_300m."""
    own = json.loads((pi0_folder / "config.json").read_text())
    sizes = {name: own[name] for name in ("vlm_config", "dit_config")}
    monkeypatch.setattr(lerobot_folder, "SIZES", {("gemma_2b", "gemma_300m"): sizes})
    folder = tmp_path / "lerobot"
    folder.mkdir()
    tensors = load_file(pi0_folder / "model.safetensors")
    save_file({lerobot_name(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    _write(folder)
    steps = [{"registry_name": "to_batch_processor", "config": {}}]
    steps += [{"registry_name": "normalizer_processor", "config": {"eps": 1e-8}, "state_file": STATE_FILE}]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
    numbers = json.loads((pi0_folder / "processor_config.json").read_text())
    saved = {
        f"{theirs}.{name}": np.array(numbers[f"{ours}_{name}"], np.float32)
        for ours, theirs in (("state", "observation.state"), ("actions", "action"))
        for name in ("mean", "std")
    }
    save_numbers({**saved, "observation.state.count": np.array([9.0], np.float32)}, folder / STATE_FILE)
    return folder


def _write(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_it_gives_the_bits_of_the_same_weights_in_transformers_format(pi0_folder: Path, folder: Path) -> None:
    ours, theirs = built(configured(pi0_folder)), built(configured(folder, tokenizer=str(pi0_folder)))
    requests: Any = first_requests(ours.spec, ("fake", "auto"), 2, seed=0)
    for one, other in zip(ours.predict(requests), theirs.predict(requests), strict=True):
        assert np.array_equal(one.actions, other.actions)
    names = {"config.json", "model.safetensors", "policy_preprocessor.json", STATE_FILE}
    assert set(theirs.files) == {*(folder / name for name in names), pi0_folder / "tokenizer.json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"paligemma_variant": "gemma_300m"}, r"are gemma_300m and gemma_300m, not gemma_2b and gemma_300m"),
        ({"image_resolution": [448, 448]}, r"image_resolution is \[448, 448\], and only \[224, 224\] is supported"),
        ({"normalization_mapping": {"STATE": "QUANTILES"}}, r"has STATE QUANTILES, and only MEAN_STD is supported"),
        ({"input_features": {"observation.images.one": {"type": "VISUAL"}}}, r"cameras: names 2, and .* has 1 \(obs"),
        ({"type": "act"}, r"its model_type is 'act', not 'pi0'"),
        ({"chunk_size": 0.5}, r"not a configuration of pi0"),
        ({"image_resolution": 224}, r"config\.json is not in the form of LeRobot's pi0 \(.*\); copy it"),
        ({"normalization_mapping": "MEAN_STD"}, r"config\.json is not in the form of LeRobot's pi0"),
        ({"input_features": ["observation.state"]}, r"config\.json is not in the form of LeRobot's pi0"),
    ],
)
def test_what_differs_from_the_model_is_refused(
    pi0_folder: Path, folder: Path, changes: dict[str, Any], said: str
) -> None:
    _write(folder, **changes)
    with pytest.raises(BadInputError, match=said):
        build_policy(configured(folder, tokenizer=str(pi0_folder)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "policy_preprocessor.json").unlink(), r"has no state_mean; name a file"),
        (
            lambda folder: (folder / "policy_preprocessor.json").write_text('{"steps": ["normalizer"]}'),
            r"policy_preprocessor\.json is not in the form of LeRobot's pi0",
        ),
        (lambda folder: (folder / STATE_FILE).write_bytes(b"no"), rf"{STATE_FILE} cannot be read"),
        (lambda folder: (folder / STATE_FILE).unlink(), rf"{STATE_FILE} cannot be read"),
    ],
)
def test_missing_statistics_are_refused(pi0_folder: Path, folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(BadInputError, match=said):
        build_policy(configured(folder, tokenizer=str(pi0_folder)))


def test_without_a_tokenizer_the_setting_is_named(folder: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no tokenizer\.json; name the folder .* policy_args\.tokenizer"):
        build_policy(configured(folder))


def test_the_sizes_are_those_of_transformers_configuration() -> None:
    """The one pair of sizes that LeRobot's pi0 has is what Transformers' configuration is by default."""
    config = PI0Config.from_dict(lerobot_folder.own_config(CONFIG, Path("config.json"), Settings(checkpoint="x")))
    text, expert = config.vlm_config.text_config, config.dit_config
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (2048, 18, 16384)
    assert (expert.hidden_size, expert.num_hidden_layers, expert.intermediate_size) == (1024, 18, 4096)
    assert (config.chunk_size, config.num_inference_steps) == (8, 3)
