"""A policy that looks and answers at once: what is left of an episode is the harness."""

from __future__ import annotations

import dataclasses

from wpray.config import Config
from wpray.policy import noop
from wpray.policy.base import PolicySpec


def spec_of(config: Config) -> PolicySpec:
    """Camera images, as a learned policy needs them."""
    return dataclasses.replace(noop.spec_of(config), name="instant", images=True)


def build(config: Config) -> noop.NoopPolicy:
    """Stays where it is."""
    return noop.NoopPolicy(spec_of(config), config.num_waypoints)
