"""Files of the learned policy (checkpoints, statistics, tokenizer), checked together before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.adapters import SKIPPED, TRAINED, AdapterSettings
from wpray.models.config import GEMMAS, ActionExpertConfig, Precision, VlmConfig
from wpray.models.layouts import ChosenFile, ModelFiles, ModelSettings, open_models
from wpray.policies.base import Sources
from wpray.policies.waypoint_vla.prompt import find_tokenizer
from wpray.policies.waypoint_vla.statistics import DataSetStatistics, PolicyScaling
from wpray.policies.waypoint_vla.suite_statistics import SuiteScalings, scalings_of, statistics_lines, suite_statistics


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """Files that a learned policy is loaded from."""

    models: ModelFiles
    statistics: Mapping[str, DataSetStatistics]  # by suite
    scalings: SuiteScalings


def open_files(config: Config) -> PolicyFiles:
    """Return the files of `config`, checked one by one and against each other.

    Raise BadInputError if a file is wrong, if headers and settings contradict each other about the layout, or if sizes
    do not match the configuration.
    """
    statistics = suite_statistics(config)
    scalings = scalings_of(statistics, config.norm_type)
    models = open_models(_given(config, scalings.default, next(iter(statistics.values())).path))
    check_sizes(config, models.vlm_config, models.expert_config)
    return PolicyFiles(models, statistics, scalings)


def sources_of(config: Config, files: PolicyFiles) -> Sources:
    """Return the sources of a policy and their interpretation, for run.json and the log."""
    models = files.models
    opened = dict(zip((chosen.setting for chosen in models.chosen), (models.vlm, models.expert), strict=False))
    facts = {
        chosen.setting: {**opened[chosen.setting].facts, "chosen_because": chosen.reason} | _passed_over(chosen)
        for chosen in models.chosen
    }
    unusual = {setting: checkpoint.describe() for setting, checkpoint in opened.items()}
    described = statistics_lines(config, files.statistics, files.scalings)
    others = (
        f"{chosen.setting}: {chosen.path} is read ({chosen.reason}); {chosen.passed_over} beside it is not"
        for chosen in models.chosen
        if chosen.passed_over is not None
    )
    # A local run has already warned of the statistics, when it checked its machine.
    foreign = config.ray.address is not None and not all(one.fits for one in files.statistics.values())
    return Sources(
        {
            **facts,
            "models": {**models.facts, "lm_head_precision": head_precision(config, models)},
            "dataset_statistics": _statistics_facts(files),
        },
        (
            *(f"{setting}: {opened[setting].path}: {text}" for setting, text in unusual.items() if text),
            *described,
        ),
        (*others, *models.warnings, *(described if foreign else ())),
    )


def _statistics_facts(files: PolicyFiles) -> dict[str, Any]:
    """Return the statistics for run.json; those of every suite under `suites` if their numbers differ."""
    facts = {
        suite: found.facts | {"sha256": files.scalings.of(suite).digest} for suite, found in files.statistics.items()
    }
    first = next(iter(facts.values()))
    return first if files.scalings.agree else {**first, "suites": facts}


def _passed_over(chosen: ChosenFile) -> dict[str, str]:
    return {} if chosen.passed_over is None else {"passed_over": str(chosen.passed_over)}


def planner_precision(config: Config) -> Precision:
    """Return the planner's precision; a joint model has a single one."""
    return config.vlm_precision if config.joint_checkpoint is None else config.precision


def head_precision(config: Config, models: ModelFiles) -> Precision:
    """Return the precision of the planner's scores: the configured one, or the first of all known branches."""
    if config.lm_head_precision != "auto":
        return config.lm_head_precision
    return "float32" if models.expert_config.planner is None else "bfloat16"


def tokenizer_path(config: Config) -> Path:
    """Return the tokenizer's file. Raise BadInputError if the named one or one near a checkpoint does not exist."""
    path = Path(config.tokenizer_path) if config.tokenizer_path else None
    named = (config.joint_checkpoint, config.vlm_checkpoint, config.ae_checkpoint)
    return find_tokenizer(path, [Path(checkpoint) for checkpoint in named if checkpoint])


def check_sizes(config: Config, vlm: VlmConfig, expert: ActionExpertConfig) -> None:
    """Raise BadInputError, naming the field, if the configured sizes are not those of the files."""
    found: dict[str, list[object]] = {
        "paligemma_variant": [name for name, size in GEMMAS.items() if size == vlm.text == expert.text],
        "action_expert_variant": [name for name, size in GEMMAS.items() if size == expert.expert],
        "model_action_dim": [expert.action_dim],
        "model_proprio_dim": [expert.action_dim],
        "horizon_steps": [expert.horizon],
    }
    for name, right in found.items():
        if getattr(config, name) not in right:
            said = getattr(config, name)
            raise BadInputError(f"{name}: {said!r} is not what the checkpoints hold ({right or 'two sizes'})")


def _given(config: Config, scaling: PolicyScaling, statistics: Path) -> ModelSettings:
    pair = (config.vlm_checkpoint, config.ae_checkpoint)
    return ModelSettings(
        pair=(pair[0], pair[1]) if pair[0] and pair[1] else None,
        joint=config.joint_checkpoint,
        token_layout=None if config.token_layout == "auto" else config.token_layout,
        prefer=config.checkpoint_file,
        proprio_dim=scaling.proprio_dim,
        statistics=statistics,
        num_waypoints=config.num_waypoints,
        adapter=_adapter(config) if config.lora_enabled else None,
        planner=None if config.planner_mode == "auto" else config.planner_mode,
        block_embed=config.planner_use_block_embed,
    )


def _adapter(config: Config) -> AdapterSettings:
    """Return the configuration's settings of a LoRA adapter."""
    assert config.pretrained_weight_path is not None  # guaranteed by the configs
    assert config.lora_alpha is not None
    skipped, trained = config.lora_modules_to_skip, config.lora_trainable_modules
    return AdapterSettings(
        config.pretrained_weight_path,
        config.lora_rank,
        config.lora_alpha,
        config.lora_use_rslora,
        config.lora_apply_to,
        config.vision_encoder_mode or ("full" if config.train_vision_encoder else "freeze"),
        SKIPPED if skipped is None else tuple(skipped),
        TRAINED if trained is None else tuple(trained),
        config.runtime_merge,
        config.lora_inference_slim,
        config.use_ema,
        config.allow_stale_ema_forensics,
    )
