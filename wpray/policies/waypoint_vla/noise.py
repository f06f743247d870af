"""Noise of the flow and of sampled plans, which depends only on the request's key.

Philox is counter-based and its key is a hash of the request's, so replicas on all machines draw the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass

import numpy as np

from wpray.types import Float32Array, PlanRequest, SegmentRequest

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


def noise_key(request: PlanRequest | SegmentRequest) -> NoiseKey:
    """Return the key of the requested segment, which is the first one for a plan."""
    trial = request.trial
    suite, task_id, index = trial.key
    return NoiseKey(trial.seed, suite, task_id, index, request.plan_index, request.segment_index)


def flow_noise(key: NoiseKey, shape: tuple[int, ...]) -> Float32Array:
    """Return standard normal noise (`shape`, float32), drawn in float64."""
    return _generator(_DOMAIN, key).standard_normal(shape).astype(np.float32)


def planner_generator(key: NoiseKey) -> np.random.Generator:
    """Return what a plan's choices are drawn from."""
    return _generator(_PLANNER_DOMAIN, key)


def _generator(domain: str, key: NoiseKey) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps([domain, *astuple(key)]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)))
