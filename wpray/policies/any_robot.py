"""Spec of a policy that fits any benchmark, because it needs nothing and any action will do."""

from __future__ import annotations

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.types import PROPRIO_FIELDS


def spec_for_any_robot(name: str, config: Config) -> PolicySpec:
    """Return the spec of the policy `name` for the robot of the configured suites."""
    benchmark, suite = config.load_benchmark(), config.suites[0]
    offered = benchmark.observation_spec(suite).proprio
    return PolicySpec(
        name,
        images=False,
        privileged=False,
        num_gpus=0,
        max_batch_size=config.batching.max_batch_size,
        proprio=PROPRIO_FIELDS if set(PROPRIO_FIELDS) <= set(offered) else offered,
        action=benchmark.action_spec(suite),
    )
