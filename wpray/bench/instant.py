"""Policy that receives images and answers at once, so that only the harness costs time."""

from __future__ import annotations

import dataclasses

from wpray.config import Config
from wpray.policies import noop
from wpray.policies.base import PolicySpec


def spec_of(config: Config) -> PolicySpec:
    """Return a spec that asks for camera images, as a learned policy's does."""
    return dataclasses.replace(noop.spec_of(config), name="instant", images=True)


def build(config: Config) -> noop.NoopPolicy:
    """Return a policy that does not move."""
    return noop.NoopPolicy(spec_of(config), config.num_waypoints)
