"""Noise of the flow and of sampled plans, which depends only on the request's key."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass

import numpy as np

from wpray.trials import seeded_generator
from wpray.types import Float32Array, WaypointRequest

_DOMAIN = "wpray flow noise 1"  # a change of this text changes every outcome
_PLANNER_DOMAIN = "wpray planner noise 1"  # the same for plans at a temperature


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Key that determines the noise of a segment."""

    seed: int
    suite: str
    task_id: int
    trial: int
    plan_index: int
    segment_index: int  # counted over the episode


def noise_key(request: WaypointRequest) -> NoiseKey:
    """Return the key of the requested segment, which is the first one for a plan."""
    trial = request.trial
    suite, task_id, index = trial.key
    return NoiseKey(trial.seed, suite, task_id, index, request.plan_index, request.segment_index)


def flow_noise(key: NoiseKey, shape: tuple[int, ...]) -> Float32Array:
    """Return standard normal noise (`shape`, float32), drawn in float64."""
    return _generator(_DOMAIN, key).standard_normal(shape).astype(np.float32)


def planner_generator(key: NoiseKey) -> np.random.Generator:
    """Return the generator of a plan's choices."""
    return _generator(_PLANNER_DOMAIN, key)


def _generator(domain: str, key: NoiseKey) -> np.random.Generator:
    return seeded_generator(json.dumps([domain, *astuple(key)]))
