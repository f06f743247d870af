"""Layouts of a configuration's checkpoints, determined from the files' headers and other settings.

A header is not sufficient: without `duration_embed`, its names and shapes fit an action expert beside a VLM and joint
models with older or newer tokens. The setting that names the checkpoint, the width of the proprio statistics and
`token_layout` decide, and they must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wpray.errors import BadInputError
from wpray.models.adapters import EMA, RAW, AdapterSettings, check_ema
from wpray.models.checkpoint import (
    Checkpoint,
    open_action_expert,
    open_adapted,
    open_joint,
    open_vlm,
    resolve_checkpoint,
)
from wpray.models.config import DURATION_EMBED, ActionExpertConfig, VlmConfig
from wpray.models.header import read_headers
from wpray.models.metadata import check_planner, read_metadata
from wpray.models.token_layout import BINS256, BINS300, TOKEN_LAYOUTS, TokenLayout, TokenLayoutName

FileName = Literal["model", "model_merged"]
PlannerMode = Literal["token_ar", "block_ar"]
# Each name is followed by that of its index of shards.
_NAMES: dict[FileName, tuple[str, str]] = {
    name: (f"{name}.safetensors", f"{name}.safetensors.index.json") for name in ("model", "model_merged")
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings of a configuration about its checkpoints: a pair, or a joint one."""

    pair: tuple[str, str] | None  # VLM, action expert
    joint: str | None
    token_layout: TokenLayoutName | None  # None: not configured
    prefer: FileName  # the one to take of a directory's files
    proprio_dim: int  # of the statistics, 8 or 6
    statistics: Path
    num_waypoints: int = 7
    adapter: AdapterSettings | None = None  # of a joint model
    planner: PlannerMode | None = None  # None: not configured
    block_embed: bool | None = None  # the block planner embeds its waypoints' numbers


@dataclass(frozen=True, slots=True)
class ChosenFile:
    """File of a checkpoint, and the reason for its choice."""

    setting: str
    path: Path
    reason: str
    passed_over: Path | None  # another candidate in the same directory


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Checkpoints whose headers match their layout."""

    vlm: Checkpoint
    vlm_config: VlmConfig
    expert: Checkpoint  # the same as `vlm` if joint
    expert_config: ActionExpertConfig
    tokens: TokenLayout
    joint: bool
    chosen: tuple[ChosenFile, ...]
    warnings: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, str]:
        """Properties of the checkpoints, for run.json."""
        duration = "token" if self.expert_config.duration_embed else "condition"
        layout = "joint" if self.joint else "two"
        planner = _planner_of(self.expert_config)
        adapter = {} if self.expert.adapter is None else {"adapter": self.expert.adapter.settings.facts["mode"]}
        return {"layout": layout, "planner": planner, "token_layout": self.tokens.name, "duration": duration} | adapter

    @property
    def files(self) -> tuple[Path, ...]:
        """Files with weights, by setting."""
        return (*self.vlm.files, *(() if self.joint else self.expert.files))


def open_models(given: ModelSettings) -> ModelFiles:
    """Open the checkpoints of a configuration without reading weights.

    Raise BadInputError if a file is missing or not of its layout, or if headers and settings contradict each other.
    """
    warnings: tuple[str, ...] = ()
    if given.joint is not None:
        chosen = [_choose_joint(given)]
        expert, expert_config, warnings = _open_joint(given, chosen[0])
        vlm, vlm_config = expert, VlmConfig(expert_config.vision, expert_config.text)
    else:
        assert given.pair is not None
        settings = zip(("vlm_checkpoint", "ae_checkpoint"), given.pair, strict=True)
        chosen = [choose_file(setting, path, given.prefer) for setting, path in settings]
        vlm, vlm_config = open_vlm(chosen[0].path, chosen[0].setting)
        expert, expert_config = open_action_expert(chosen[1].path, chosen[1].setting)
    _check_planner(given, chosen[-1], expert_config)
    tokens = _token_layout(given, chosen, vlm, expert_config)
    for file in chosen:
        metadata, what = read_metadata(file.path, file.setting), f"{file.setting}: {file.path}"
        check_planner(metadata, expert_config.planner, tokens, given.num_waypoints, what)
    joint = given.joint is not None
    return ModelFiles(vlm, vlm_config, expert, expert_config, tokens, joint, tuple(chosen), warnings)


def choose_file(setting: str, path: str, prefer: FileName) -> ChosenFile:
    """Return the file of the checkpoint `path`: the path itself, or a file in the directory.

    Branches of the training code disagree whether model.safetensors or model_merged.safetensors counts if both exist;
    `prefer` decides. Raise BadInputError if neither exists.
    """
    place = Path(path).expanduser()
    order = sorted(_NAMES, key=lambda name: name != prefer)
    file = resolve_checkpoint(path, setting, tuple(own for name in order for own in _NAMES[name]))
    if not place.is_dir():
        return ChosenFile(setting, file, "named", None)
    there = [place / own for name in order for own in _NAMES[name] if (place / own).is_file()]
    other = [found for found in there if found.name not in next(own for own in _NAMES.values() if file.name in own)]
    if other:
        return ChosenFile(setting, file, f"checkpoint_file: {prefer}", other[0])
    if (place / RAW).is_file():
        return ChosenFile(setting, file, "lora_enabled: false", place / RAW)
    return ChosenFile(setting, file, "the only one", None)


def _choose_joint(given: ModelSettings) -> ChosenFile:
    """Return the file of a joint model: an adapter's, if there is one and it is enabled."""
    assert given.joint is not None
    setting, place, adapter = "joint_checkpoint", Path(given.joint).expanduser(), given.adapter
    if adapter is None or place.is_file():
        return choose_file(setting, given.joint, given.prefer)
    raw, averaged = place / RAW, place / EMA
    if adapter.ema:
        for file in (averaged, raw):  # without the raw one, the reference reads the folder as merged weights
            if not file.is_file():
                raise BadInputError(f"{setting}: {place}: has no {file.name}, which use_ema needs; leave use_ema out")
        return ChosenFile(setting, averaged, "use_ema: true", raw)
    if raw.is_file():
        whole = next((place / own for names in _NAMES.values() for own in names if (place / own).is_file()), None)
        return ChosenFile(setting, raw, "lora_enabled: true", whole)
    return choose_file(setting, given.joint, given.prefer)


def _open_joint(given: ModelSettings, file: ChosenFile) -> tuple[Checkpoint, ActionExpertConfig, tuple[str, ...]]:
    """Return a joint model and warnings."""
    adapter = given.adapter
    if adapter is None or not _holds_adapter(file):
        found, config = open_joint(file.path, file.setting)
        said = f"{file.setting}: lora_enabled is true, but {file.path} holds merged weights: no active adapter's bits"
        return found, config, () if adapter is None else (said,)
    base = choose_file("pretrained_weight_path", adapter.base, "model")
    found, config = open_adapted(file.path, base.path, adapter, file.setting)
    what = f"use_ema: {file.path}"
    warning = check_ema(read_metadata(file.path, file.setting), adapter, what) if adapter.ema else None
    return found, config, () if warning is None else (warning,)


def _holds_adapter(file: ChosenFile) -> bool:
    """Return True for an adapter's file; one that a setting names is recognized by its tensors."""
    if file.path.name in (RAW, EMA):
        return True
    return file.reason == "named" and any(".lora_" in name for name in read_headers(file.path, file.setting).shapes)


def _planner_of(config: ActionExpertConfig) -> PlannerMode:
    return "token_ar" if config.planner is None else "block_ar"


def _check_planner(given: ModelSettings, file: ChosenFile, config: ActionExpertConfig) -> None:
    """Raise BadInputError for a block planner outside a joint model, or of another width or length."""
    planner, what = config.planner, f"{file.setting}: {file.path}: holds a block planner"
    if given.planner not in (None, _planner_of(config)):
        holds = "no block_planner tensors" if planner is None else "block_planner tensors"
        raise BadInputError(f"planner_mode is {given.planner}, but {file.path} holds {holds} ({_planner_of(config)})")
    if planner is None:
        return
    if given.block_embed not in (None, planner.blocks is not None):
        holds = "no" if planner.blocks is None else "a"
        raise BadInputError(
            f"planner_use_block_embed is {str(given.block_embed).lower()}, but {file.path} holds {holds} block_embed"
        )
    if given.joint is None:
        raise BadInputError(f"{what}, which only a joint model has; name it as joint_checkpoint alone")
    if planner.rows != BINS300.tokens_per_waypoint:
        wanted = BINS300.tokens_per_waypoint
        raise BadInputError(f"{what} of {planner.rows} tokens a waypoint, expected {wanted}")
    if planner.blocks not in (None, given.num_waypoints):
        raise BadInputError(f"num_waypoints: {given.num_waypoints}, but {file.path} plans {planner.blocks}; set that")


def _token_layout(
    given: ModelSettings, chosen: Sequence[ChosenFile], vlm: Checkpoint, config: ActionExpertConfig
) -> TokenLayout:
    """Return the token layout that headers and settings agree on."""
    by_width = {layout.proprio_dim: layout for layout in TOKEN_LAYOUTS.values()}[given.proprio_dim]
    witnesses = {f"{given.statistics} describes {given.proprio_dim} proprio dimensions": by_width}
    if given.token_layout is not None:
        witnesses["token_layout is set"] = TOKEN_LAYOUTS[given.token_layout]
    elif given.pair is not None:
        witnesses["vlm_checkpoint and ae_checkpoint name a pair of files"] = BINS256
    newer = (DURATION_EMBED in vlm.left_out, config.duration_embed)  # in the VLM's file, in the action expert's
    for file, holds in zip(chosen, newer[-len(chosen) :], strict=True):
        if holds:
            what = "duration_embed" if config.planner is None else "block_planner"
            witnesses[f"{file.path} holds {what}"] = BINS300
    if len(set(witnesses.values())) > 1:
        said = "; ".join(f"{witness} ({layout.name})" for witness, layout in witnesses.items())
        key = "" if given.joint is None else f"; joint_checkpoint is {given.joint}"
        raise BadInputError(f"what says which tokens the model writes is contradictory: {said}{key}; {_remedy(given)}")
    return by_width


def _remedy(given: ModelSettings) -> str:
    if given.pair is not None and given.token_layout is None:
        return "give the statistics of these checkpoints, or set token_layout if the pair was trained with other tokens"
    return "give the checkpoint and the statistics of one training run, and token_layout accordingly or not at all"
