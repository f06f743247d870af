"""Statistics of a feature: extremes, mean, spread and quantiles, of numbers and of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from wpray.types import ImageArray, IntArray

FeatureStatistics = dict[str, list[Any]]
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def of_numbers(values: Any) -> FeatureStatistics:
    """Return the statistics of (N,) or (N, width) values, one number per column."""
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    found = {
        "min": columns.min(axis=0),
        "max": columns.max(axis=0),
        "mean": columns.mean(axis=0),
        "std": columns.std(axis=0),
        "count": np.array([len(columns)]),
        **{name: np.quantile(columns, share, axis=0) for name, share in _QUANTILES.items()},
    }
    return {name: array.tolist() for name, array in found.items()}


def levels(images: Iterable[ImageArray]) -> IntArray:
    """Return counts (3, 256) of the levels in (H, W, 3) images, by channel; counts of several images add up."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for image in images:
        for channel in range(3):
            counts[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
    return counts


def of_levels(counts: IntArray, frames: int) -> FeatureStatistics:
    """Return the statistics of the pixels of `frames` images, from 0 to 1, as (3, 1, 1) lists."""
    level, total = np.arange(256) / 255, counts.sum(axis=1)
    below = counts.cumsum(axis=1) / total[:, None]
    mean = counts @ level / total
    seen = [np.flatnonzero(channel) / 255 for channel in counts]
    found = {
        "min": np.array([channel[0] for channel in seen]),
        "max": np.array([channel[-1] for channel in seen]),
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ level**2 / total - mean**2, 0)),
        **{name: level[np.argmax(below >= share, axis=1)] for name, share in _QUANTILES.items()},
    }
    return {"count": [frames]} | {name: array.reshape(3, 1, 1).tolist() for name, array in found.items()}
