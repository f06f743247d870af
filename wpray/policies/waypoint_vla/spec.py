"""Spec of the Waypoint VLA, without torch because every env actor imports it."""

from __future__ import annotations

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.waypoint_vla.flat_settings import checkpoints

NAME = "waypoint_vla"


def spec_of(config: Config) -> PolicySpec:
    """Return camera images, a GPU, the largest batch and the checkpoints."""
    size, files = config.largest_batch, checkpoints(config)
    return PolicySpec(NAME, True, False, num_gpus=1, max_batch_size=size, checkpoints=files, planner="VLM")


def check_is_chosen(config: Config, path: str, reader: str) -> None:
    """Raise BadInputError if the configuration in the file `path` is another policy's; `reader` reads this one's."""
    if config.policy != NAME:
        raise BadInputError(f"{path}: its policy is {config.policy}; {reader} reads checkpoints of {NAME}")
