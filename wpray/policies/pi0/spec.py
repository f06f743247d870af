"""Settings and spec of pi0, without torch and Transformers because the driver reads both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from wpray.config import Config
from wpray.models.config import Precision
from wpray.policies.base import PolicySpec
from wpray.policies.settings import NO_OUTCOME, read_settings
from wpray.system.paths import expand
from wpray.types import ImageSpec

CHECKPOINT, TOKENIZER = "policy_args.checkpoint", "policy_args.tokenizer"
STATISTICS, STATISTICS_KEY = "policy_args.statistics", "policy_args.statistics_key"
Camera = Literal["base", "wrist"]


def _expanded(path: str | None) -> str | None:
    return None if path is None else expand(path)


def _each_once(cameras: list[Camera]) -> list[Camera]:
    if len(set(cameras)) < len(cameras):
        raise ValueError("names a camera twice")
    return cameras


class Settings(BaseModel):
    """Files of a checkpoint, and what its training decided that no file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, AfterValidator(expand)] = Field(
        min_length=1, description="folder that Transformers or LeRobot saved, or its name on the hub, OWNER/NAME"
    )
    revision: str | None = Field(None, min_length=1, description="commit, tag or branch of a checkpoint on the hub")
    local_files_only: Annotated[bool, NO_OUTCOME] = Field(
        True, description="read the hub's cache on this machine only; false: download what is missing"
    )
    tokenizer: Annotated[str | None, AfterValidator(_expanded)] = Field(
        None, min_length=1, description="folder with PaliGemma's tokenizer.json; default: the checkpoint's"
    )
    statistics: Annotated[str | None, AfterValidator(_expanded)] = Field(
        None,
        min_length=1,
        description="file with mean and std of state and actions; default: those in the checkpoint's processor",
    )
    statistics_key: str | None = Field(
        None, min_length=1, description="data set in that file; default: the suite's own, else the only one"
    )
    execute_steps: PositiveInt = Field(5, le=1000, description="actions of a chunk that are executed before the next")
    num_inference_steps: int | None = Field(
        None, ge=1, le=1000, description="steps of the flow; default: the checkpoint's"
    )
    precision: Precision = Field("bfloat16", description="compute precision, whatever the files are stored in")
    max_prompt_tokens: PositiveInt = Field(48, le=1024, description="longest instruction, to which all are padded")
    cameras: Annotated[list[Camera], AfterValidator(_each_once)] = Field(
        ["base", "wrist"], min_length=1, description="images in the order of training"
    )
    extra_delta_transform: bool = Field(
        False, description="add the state to each action's position and rotation, as openpi does for its pi0_libero"
    )


def settings_of(config: Config) -> Settings:
    """Return the policy's own settings. Raise BadInputError for what they do not allow."""
    settings = read_settings(Settings, config.policy_args)
    assert isinstance(settings, Settings)
    return settings


def spec_of(config: Config) -> PolicySpec:
    """Return a GPU, the largest batch, and the cameras' images as openpi pads them."""
    settings = settings_of(config)
    return PolicySpec(
        "pi0",
        images=True,
        privileged=False,
        num_gpus=1,
        max_batch_size=config.largest_batch,
        kind="chunk",
        execute_steps=settings.execute_steps,
        cameras=dict.fromkeys(settings.cameras, ImageSpec(resize="pad")),
        checkpoints={"pi0": settings.checkpoint},
    )
