"""Normalization of proprio and actions, in float32 as training does it.

`q99` maps the 1st and 99th percentile to -1 and 1 and clips; `normal` is the z-score. The gripper and dimensions that
the statistics' mask excludes are not normalized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpray.types import Float32Array

NormType = Literal["q99", "normal"]
NEEDED_STATISTICS: Mapping[NormType, tuple[str, str]] = {"q99": ("q01", "q99"), "normal": ("mean", "std")}
_EPSILON = 1e-8  # as in training; keeps a constant dimension finite


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Scaling x -> clip(2 (x - low) / (high - low) - 1, -1, 1); a constant dimension becomes 0."""

    low: Float32Array  # (D,) 1st percentile
    high: Float32Array  # (D,) 99th percentile

    def normalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 in [-1, 1] for (..., D) raw values."""
        raw = np.asarray(value, dtype=np.float32)
        scaled = 2 * (raw - self.low) / (self.high - self.low + np.float32(_EPSILON)) - 1
        return np.where(self.low == self.high, np.float32(0), np.clip(scaled, -1, 1)).astype(np.float32)

    def denormalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 raw values for (..., D) normalized ones."""
        normalized = np.asarray(value, dtype=np.float32)
        return (normalized + 1) / 2 * (self.high - self.low) + self.low


@dataclass(frozen=True, slots=True)
class ZScore:
    """Scaling x -> (x - mean) / std."""

    mean: Float32Array  # (D,)
    std: Float32Array  # (D,)

    def normalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 for (..., D) raw values."""
        return (np.asarray(value, dtype=np.float32) - self.mean) / (self.std + np.float32(_EPSILON))

    def denormalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 raw values for (..., D) normalized ones."""
        return np.asarray(value, dtype=np.float32) * (self.std + np.float32(_EPSILON)) + self.mean


@dataclass(frozen=True, slots=True)
class Masked:
    """Scaling of some dimensions; the others stay unchanged and unclipped."""

    scaling: Quantiles | ZScore
    mask: NDArray[np.bool_]  # (D,) True where `scaling` applies

    def normalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 for (..., D) raw values."""
        return self._where(self.scaling.normalize(value), value)

    def denormalize(self, value: ArrayLike) -> Float32Array:
        """Return (..., D) float32 raw values for (..., D) normalized ones."""
        return self._where(self.scaling.denormalize(value), value)

    def _where(self, scaled: Float32Array, value: ArrayLike) -> Float32Array:
        return np.where(self.mask, scaled, np.asarray(value, dtype=np.float32))


Scaling = Quantiles | ZScore | Masked


def scaling(
    statistics: Mapping[str, Float32Array], norm_type: NormType, mask: NDArray[np.bool_] | None = None
) -> Scaling:
    """Return the scaling of one field from its `mean`, `std`, `q01`, `q99` (each (D,) float32).

    `mask` (D,): False where a dimension is not normalized; None: all are.
    """
    first, second = (statistics[name] for name in NEEDED_STATISTICS[norm_type])
    unmasked = Quantiles(first, second) if norm_type == "q99" else ZScore(first, second)
    return unmasked if mask is None or mask.all() else Masked(unmasked, mask)
