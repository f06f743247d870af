"""A policy that asks for a GPU and does not use it."""

from __future__ import annotations

import dataclasses

from wpray.config import Config
from wpray.policies import noop
from wpray.policies.base import PolicySpec


def spec_of(config: Config) -> PolicySpec:
    return dataclasses.replace(noop.spec_of(config), num_gpus=1)


def build(config: Config) -> noop.NoopPolicy:
    return noop.NoopPolicy(spec_of(config), config.num_waypoints)
