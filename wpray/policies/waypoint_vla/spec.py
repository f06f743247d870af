"""Spec of the Waypoint VLA, without torch because every env actor imports it."""

from __future__ import annotations

from wpray.config import Config
from wpray.policies.base import PolicySpec


def spec_of(config: Config) -> PolicySpec:
    """Return camera images and a GPU, and the largest batch.

    No batch is larger than the environments are many, because it would take memory for nothing.
    """
    largest, environments = config.batching.max_batch_size, config.num_env_actors
    if environments != "auto":
        largest = min(largest, environments)
    return PolicySpec("waypoint_vla", True, False, num_gpus=1, max_batch_size=largest)
