"""Folders that LeRobot saves: the weights of the same model, with a configuration and statistics of its own form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wpray.errors import BadInputError, shown
from wpray.policies.pi0.json_file import in_the_form_of, read_json
from wpray.policies.pi0.spec import CHECKPOINT, Settings
from wpray.types import POLICY_IMAGE_SIZE

# Sizes of the two networks -> what Transformers' configuration says of them; these are its defaults.
SIZES: dict[tuple[str, str], dict[str, Any]] = {("gemma_2b", "gemma_300m"): {}}
_FORM = "LeRobot's pi0"
_SAME = ("chunk_size", "max_state_dim", "max_action_dim", "num_inference_steps", "min_period", "max_period")
_PREPROCESSOR, _NORMALIZER = "policy_preprocessor.json", "normalizer_processor"
_NAMES = {"state": "observation.state", "actions": "action"}  # in Transformers' processor -> in the statistics


def is_lerobots(config: Mapping[str, Any]) -> bool:
    """Return True for the content of a config.json that LeRobot's pi0 wrote."""
    return "model_type" not in config and config.get("type") == "pi0"


def own_config(config: Mapping[str, Any], path: Path, settings: Settings) -> dict[str, Any]:
    """Return Transformers' form of LeRobot's `config`.

    Raise BadInputError if the model is another one, or was trained with other images or another normalization.
    """
    with in_the_form_of(_FORM, path):
        return _checked_config(config, path, settings)


def _checked_config(config: Mapping[str, Any], path: Path, settings: Settings) -> dict[str, Any]:
    sizes = str(config.get("paligemma_variant")), str(config.get("action_expert_variant"))
    if sizes not in SIZES:
        known = " or ".join(" and ".join(pair) for pair in SIZES)
        _refuse(path, f"paligemma_variant and action_expert_variant are {' and '.join(sizes)}, not {known}")
    side = [POLICY_IMAGE_SIZE] * 2
    if list(config.get("image_resolution", side)) != side:
        _refuse(path, f"image_resolution is {config['image_resolution']}, and only {side} is supported")
    modes = config.get("normalization_mapping", {})
    odd = [f"{name} {modes[name]}" for name in ("STATE", "ACTION") if modes.get(name, "MEAN_STD") != "MEAN_STD"]
    if odd:
        _refuse(path, f"normalization_mapping has {odd[0]}, and only MEAN_STD is supported")
    features = config.get("input_features", {})
    images = [name for name, feature in features.items() if feature.get("type") == "VISUAL" and "empty_" not in name]
    if images and len(images) != len(settings.cameras):
        listed = ", ".join(map(shown, images))
        count = len(settings.cameras)
        raise BadInputError(
            f"policy_args.cameras: names {count}, and {path} has {len(images)} ({listed}); name as many, in that order"
        )
    return {"model_type": "pi0", **{name: config[name] for name in _SAME if name in config}, **SIZES[sizes]}


def statistics_files(folder: Path) -> tuple[Path, ...]:
    """Return the preprocessor's file and that of its statistics, if they are there.

    Raise BadInputError if the preprocessor's cannot be read.
    """
    file = folder / _PREPROCESSOR
    if not file.is_file():
        return ()
    with in_the_form_of(_FORM, file):
        steps = [step for step in read_json(file).get("steps", []) if step.get("registry_name") == _NORMALIZER]
    name = steps[0].get("state_file") if steps else None
    return (file, folder / Path(name).name) if isinstance(name, str) else (file,)


def processor_numbers(folder: Path) -> dict[str, list[float]]:
    """Return mean and std of state and actions by the names of Transformers' processor; empty if there are none.

    Raise BadInputError if the file cannot be read.
    """
    files = statistics_files(folder)
    if len(files) < 2:
        return {}
    try:
        with safe_open(files[1], framework="np") as stored:
            known = set(stored.keys())
            return {
                f"{own}_{name}": stored.get_tensor(f"{theirs}.{name}").ravel().tolist()
                for own, theirs in _NAMES.items()
                for name in ("mean", "std")
                if f"{theirs}.{name}" in known
            }
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{CHECKPOINT}: {files[1]} cannot be read ({reason}); copy it from its source") from error


def _refuse(path: Path, found: str) -> None:
    raise BadInputError(f"{CHECKPOINT}: {path}: {found}; name another checkpoint")
