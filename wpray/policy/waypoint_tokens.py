"""Waypoints as tokens: proprio bins and durations, and where they lie in PaliGemma's vocabulary.

One waypoint is `<wp>` p1..p8 `<dur>` d. The ids of bins and durations count down: a larger value, a smaller id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpray.types import PROPRIO_DIM, Float32Array, IntArray

VOCABULARY = 257152  # of PaliGemma's tokenizer and embedding table
NUM_BINS = 256
MAX_DURATION = 33
WAYPOINT_TOKEN = 256733
DURATION_TOKEN = 256732
LOWEST_SPECIAL_TOKEN = DURATION_TOKEN
_BIN_0 = 257023
_DURATION_0 = 256767
_EDGES = np.linspace(-1, 1, NUM_BINS + 1)[:-1]  # each bin's lower edge


def to_bins(normalized: ArrayLike) -> IntArray:
    """(..., 8) normalized values -> the bins 0..255 they lie in; outside of [-1, 1] the nearest one.

    Raises ValueError for a value that is not finite: it lies in no bin.
    """
    values = np.asarray(normalized)
    if not np.isfinite(values).all():
        raise ValueError("a proprio value is not finite")
    bins: IntArray = np.digitize(np.clip(values, -1, 1), _EDGES).astype(np.int64) - 1
    return bins


def bin_centers(bins: ArrayLike) -> Float32Array:
    """(..., 8) bins 0..255 -> normalized values at the bins' centers, float32."""
    return ((np.asarray(bins, dtype=np.float64) + 0.5) * (2 / NUM_BINS) - 1).astype(np.float32)


def bin_ids(bins: ArrayLike) -> IntArray:
    """Bins 0..255 -> token ids."""
    return _BIN_0 - np.asarray(bins, dtype=np.int64)


def duration_ids(durations: ArrayLike) -> IntArray:
    """Durations 0..33 in control steps -> token ids."""
    return _DURATION_0 - np.asarray(durations, dtype=np.int64)


def decode(tokens: ArrayLike) -> tuple[IntArray, IntArray]:
    """(..., M * 11) generated ids -> bins (..., M, 8) and durations (..., M).

    Raises ValueError if the ids are not whole waypoints.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    waypoints: NDArray[np.int64] = ids.reshape(*ids.shape[:-1], -1, PROPRIO_DIM + 3)
    bins, durations = _BIN_0 - waypoints[..., 1 : PROPRIO_DIM + 1], _DURATION_0 - waypoints[..., -1]
    marked = (waypoints[..., 0] == WAYPOINT_TOKEN) & (waypoints[..., PROPRIO_DIM + 1] == DURATION_TOKEN)
    in_range = ((bins >= 0) & (bins < NUM_BINS)).all(axis=-1) & (durations >= 0) & (durations <= MAX_DURATION)
    if not (marked & in_range).all():
        raise ValueError("the token ids are not whole waypoints")
    return bins, durations
