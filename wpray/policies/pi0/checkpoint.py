"""Files of a pi0 checkpoint, found and checked together before a weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.checkpoint import resolve_checkpoint
from wpray.models.header import Header, read_headers
from wpray.policies.pi0 import lerobot_folder
from wpray.policies.pi0.json_file import in_the_form_of, read_json
from wpray.policies.pi0.spec import CHECKPOINT, STATISTICS, STATISTICS_KEY, TOKENIZER, Settings, settings_of
from wpray.policies.waypoint_vla.statistics import DataSetStatistics, PolicyScaling, read_for_suites
from wpray.policies.waypoint_vla.statistics_file import KEY_SETTING
from wpray.policies.waypoint_vla.statistics_file import SETTING as STATISTICS_SETTING
from wpray.types import POLICY_IMAGE_SIZE, PROPRIO_DIM, Float32Array

_CONFIG, _TOKENIZER, _PROCESSOR = "config.json", "tokenizer.json", "processor_config.json"
_IMAGE_PROCESSOR = "preprocessor_config.json"  # in a file of its own in older folders
_READ = ("*.json", "*.safetensors")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SIDE = POLICY_IMAGE_SIZE
_STATISTICS = ("state_mean", "state_std", "actions_mean", "actions_std")  # in the processor's file


@dataclass(frozen=True, slots=True)
class PixelScale:
    """Scaling x -> (x - shift) / scale of each channel's bytes, as Transformers' image processor computes it."""

    shift: Float32Array  # (3,)
    scale: Float32Array  # (3,)


@dataclass(frozen=True, slots=True)
class Pi0Files:
    """Files of a checkpoint and what they say; `config` is not checked yet."""

    folder: Path
    config: Mapping[str, Any]
    header: Header
    tokenizer: Path
    statistics: DataSetStatistics
    scaling: PolicyScaling
    pixels: PixelScale
    all: tuple[Path, ...]  # every file that decides the actions


def open_files(config: Config) -> Pi0Files:
    """Return the files that the settings name.

    Raise BadInputError if one is missing or damaged, or is not what this policy can use.
    """
    settings = settings_of(config)
    folder = _folder(settings)
    described, processor, its_files = _described(folder, settings)
    header = read_headers(resolve_checkpoint(folder, CHECKPOINT), CHECKPOINT)
    statistics, scaling = _scaling(config, its_files[-1], processor)
    pixels = _pixel_scale(folder, processor.get("image_processor", processor))
    tokenizer = _tokenizer(settings, folder)
    used = (*header.files, *(file for file in its_files if file.is_file()), tokenizer, statistics.path)
    return Pi0Files(folder, described, header, tokenizer, statistics, scaling, pixels, tuple(dict.fromkeys(used)))


def _folder(settings: Settings) -> Path:
    """Return the checkpoint's folder, that of the hub's cache for a name. Raise BadInputError if there is none."""
    name, folder = settings.checkpoint, Path(settings.checkpoint)
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(name):
        raise BadInputError(f"{CHECKPOINT}: {name} is no folder here, and no name on the hub (OWNER/NAME); correct it")
    offline = settings.local_files_only
    try:
        found = snapshot_download(name, revision=settings.revision, local_files_only=offline, allow_patterns=[*_READ])
    except LocalEntryNotFoundError as error:
        remedy = f"download it (hf download {name}), or set policy_args.local_files_only false"
        raise BadInputError(
            f"{CHECKPOINT}: {name} is no folder here, and the hub's cache does not hold it; {remedy}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{CHECKPOINT}: {name} cannot be fetched from the hub ({reason}); name a folder") from error
    return Path(found)


def _described(folder: Path, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any], tuple[Path, ...]]:
    """Return the configuration and the processor in Transformers' form, and their files, the statistics' last."""
    place = folder / _CONFIG
    config = read_json(place)
    if lerobot_folder.is_lerobots(config):
        files = lerobot_folder.statistics_files(folder) or (folder,)
        own = lerobot_folder.own_config(config, place, settings)
        return own, lerobot_folder.processor_numbers(folder), (place, *files)
    if config.get("model_type") != "pi0":
        found = config.get("model_type", config.get("type"))
        remedy = "name a folder that PI0ForConditionalGeneration.save_pretrained wrote"
        raise BadInputError(f"{CHECKPOINT}: {place}: its model_type is {found!r}, not 'pi0'; {remedy}")
    processor: dict[str, Any] = {}
    files = (folder / _IMAGE_PROCESSOR, folder / _PROCESSOR)
    for file in filter(Path.is_file, files):
        processor |= read_json(file)
    return config, processor, (place, *files)


def _tokenizer(settings: Settings, folder: Path) -> Path:
    setting, place = (CHECKPOINT, folder) if settings.tokenizer is None else (TOKENIZER, Path(settings.tokenizer))
    file = place / _TOKENIZER if place.is_dir() else place
    if not file.is_file():
        remedy = "name the folder of PaliGemma's tokenizer in policy_args.tokenizer"
        raise BadInputError(f"{setting}: {place} holds no {_TOKENIZER}; {remedy}")
    return file


def _scaling(config: Config, file: Path, processor: Mapping[str, Any]) -> tuple[DataSetStatistics, PolicyScaling]:
    """Return the statistics and the scalings of state and actions in them: z-scores, as pi0 is trained with.

    They are those of the file that the settings name, else those of the `processor`, which was read from `file`.
    """
    own = settings_of(config).statistics is None
    try:
        statistics = _processor_statistics(file, processor) if own else _named_statistics(config)
        scaling = statistics.scaling("normal")
    except BadInputError as error:
        raise BadInputError(with_own_settings(str(error), CHECKPOINT if own else STATISTICS)) from error
    if scaling.proprio_dim != PROPRIO_DIM:
        found = f"{scaling.proprio_dim} numbers of the state, and pi0 sees {PROPRIO_DIM}"
        setting = CHECKPOINT if own else STATISTICS
        raise BadInputError(f"{setting}: {statistics.path} has statistics of {found}; name those of its training data")
    return statistics, scaling


def with_own_settings(text: str, setting: str = STATISTICS) -> str:
    """Return a line about statistics with this policy's settings in place of the Waypoint VLA's."""
    return text.replace(STATISTICS_SETTING, setting).replace(KEY_SETTING, STATISTICS_KEY)


def _named_statistics(config: Config) -> DataSetStatistics:
    settings = settings_of(config)
    assert settings.statistics is not None
    path, key = Path(settings.statistics), settings.statistics_key
    return read_for_suites(path, config.data_suites, key, "normal", config.benchmark)


def _processor_statistics(path: Path, processor: Mapping[str, Any]) -> DataSetStatistics:
    missing = [name for name in _STATISTICS if processor.get(name) is None]
    if missing:
        remedy = f"name a file of the training data's statistics in {STATISTICS}"
        raise BadInputError(f"{CHECKPOINT}: {path} has no {missing[0]}; {remedy}")
    fields = {
        field: {name: processor[f"{own}_{name}"] for name in ("mean", "std")}
        for field, own in (("proprio", "state"), ("action", "actions"))
    }
    return DataSetStatistics(path, None, True, fields, {"proprio": "state", "action": "actions"})


def _pixel_scale(folder: Path, processor: Mapping[str, Any]) -> PixelScale:
    """Return the image processor's scaling. Raise BadInputError if its images are of another size, or not scaled."""
    with in_the_form_of("an image processor", folder / _PROCESSOR):
        _check_sides(folder, processor)
        factor = float(processor.get("rescale_factor", 1 / 255))
        mean, std = (np.array(processor.get(name, [0.5] * 3), np.float32) for name in ("image_mean", "image_std"))
    off = [name for name in ("do_rescale", "do_normalize") if processor.get(name, True) is not True]
    if off:
        raise _odd_processor(folder, f"has {off[0]} {processor[off[0]]!r}, and only true is supported")
    whole = mean.shape == std.shape == (3,) and np.isfinite([*mean, *std, factor]).all()
    if not whole or factor <= 0 or std.min() <= 0:
        numbers = f"image_mean {mean.tolist()}, image_std {std.tolist()}, rescale_factor {factor}"
        raise _odd_processor(folder, f"has {numbers}, which is no scaling of three channels")
    return PixelScale((mean * (1 / factor)).astype(np.float32), (std * (1 / factor)).astype(np.float32))


def _check_sides(folder: Path, processor: Mapping[str, Any]) -> None:
    for name, sides in (("size", ("max_height", "max_width", "height", "width")), ("pad_size", ("height", "width"))):
        size = processor.get(name, {})
        given = [size[side] for side in sides if size.get(side) is not None]
        if any(side != _SIDE for side in given):
            raise _odd_processor(folder, f"has {name} {size}, and only {_SIDE} pixels are supported")


def _odd_processor(folder: Path, found: str) -> BadInputError:
    return BadInputError(f"{CHECKPOINT}: {folder}: its image processor {found}; name another checkpoint")
