"""Initial noise of the flow, which depends only on the request's key.

Philox is counter-based and its key is a hash of the request's, so replicas on all machines draw the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass

import numpy as np

from wpray.types import Float32Array, PlanRequest, SegmentRequest

_DOMAIN = "wpray flow noise 1"  # a change of this text changes every outcome


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
    text = json.dumps([_DOMAIN, *astuple(key)])
    digest = hashlib.sha256(text.encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)))
    return generator.standard_normal(shape).astype(np.float32)
