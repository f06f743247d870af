"""Sensor noise on the scene camera's picture, as LIBERO-plus's environment draws it.

Numbers 1 to 50 are five kinds of ten severities. The package draws from numpy's global generator, so do these functions
from one of that kind, in its order. Its motion blur is ImageMagick's, of version 6 with 16 bits a channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from wpray.types import Float32Array, FloatArray, ImageArray

Random = np.random.RandomState
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))  # radius, sigma
_LARGEST_ANGLE = 45
_ZOOM = (  # end and step of the factors
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
_FOG = (  # density, decay of the roughness from one scale to the next
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
_GLASS = (  # sigma, largest shift, rounds
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)
_GLASS_EDGE = 224  # rows and columns from here on are not shuffled
_FOG_SIZE = 256
_PER_QUANTUM = 257  # of ImageMagick's 16-bit channels for each step of 8-bit ones


def noisy(picture: ImageArray, noise: int, random: Random) -> ImageArray:
    """Return a picture (256, 256, 3), rows from the bottom as robosuite's, with the noise of a number, 1 to 50."""
    kind, severity = divmod(noise - 1, 10)
    return _KINDS[kind](picture, severity, random)


def _motion_blur(picture: ImageArray, severity: int, random: Random) -> ImageArray:
    """Average along a line that begins at each pixel; the edge continues without end."""
    radius, sigma = _MOTION[severity]
    angle = math.radians(random.uniform(-_LARGEST_ANGLE, _LARGEST_ANGLE))
    width = 2 * radius + 1
    weights = [math.exp(-(i * i) / (2.0 * sigma * sigma)) / (math.sqrt(2 * math.pi) * sigma) for i in range(width)]
    x, y = width * math.cos(angle), width * math.sin(angle)
    height, length = picture.shape[:2]
    padded = np.pad(picture.astype(np.float64) * _PER_QUANTUM, ((width, width), (width, width), (0, 0)), "edge")
    blurred = np.zeros(picture.shape)
    for i, weight in enumerate(weights):
        right, down = (width + math.ceil(i * part / math.hypot(x, y) - 0.5) for part in (x, y))
        blurred += weight / sum(weights) * padded[down : down + height, right : right + length]
    return ((blurred + 0.5).astype(np.int64) // _PER_QUANTUM).astype(np.uint8)


def _gaussian_blur(picture: ImageArray, severity: int, random: Random) -> ImageArray:
    return _as_bytes(_gaussian(picture / 255.0, severity + 1))


def _zoom_blur(picture: ImageArray, severity: int, random: Random) -> ImageArray:
    """Average the picture and enlargements of its middle."""
    factors = np.arange(1, *_ZOOM[severity])
    seen = (picture / 255.0).astype(np.float32)
    total = np.zeros_like(seen)
    for factor in factors:
        total += _enlarged(seen, float(factor))
    return _as_bytes((seen + total) / (len(factors) + 1))


def _fog(picture: ImageArray, severity: int, random: Random) -> ImageArray:
    density, decay = _FOG[severity]
    seen = picture / 255.0
    brightest = seen.max()
    height, width = picture.shape[:2]
    seen += density * _cloud(decay, random)[:height, :width, np.newaxis]
    return _as_bytes(seen * brightest / (brightest + density))


def _glass_blur(picture: ImageArray, severity: int, random: Random) -> ImageArray:
    """Blur, replace pixels by neighbours one after the other, and blur again."""
    sigma, shift, rounds = _GLASS[severity]
    blurred = np.uint8(_gaussian(picture / 255.0, sigma) * 255)
    width = picture.shape[1]
    places = range(_GLASS_EDGE - shift, shift, -1)
    moves = random.randint(-shift, shift, size=(rounds, len(places) ** 2, 2))  # columns, rows
    offsets = (moves[..., 1] * width + moves[..., 0]).tolist()
    order = [row * width + column for row in places for column in places]
    source = list(range(picture.shape[0] * width))
    for its in offsets:
        for place, offset in zip(order, its, strict=True):
            source[place] = source[place + offset]
    shuffled = blurred.reshape(-1, 3)[source].reshape(picture.shape)
    return _as_bytes(_gaussian(shuffled / 255.0, sigma))


_KINDS: tuple[Callable[[ImageArray, int, Random], ImageArray], ...] = (
    *(_motion_blur, _gaussian_blur, _zoom_blur),
    *(_fog, _glass_blur),
)


def _as_bytes(values: FloatArray | Float32Array) -> ImageArray:
    """Return values of 0 to 1 as bytes, cut off and not rounded."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _gaussian(values: FloatArray, sigma: float) -> FloatArray:
    """Return what scikit-image's `gaussian` gives."""
    return np.asarray(ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="nearest", truncate=4.0))


def _enlarged(values: Float32Array, factor: float) -> Float32Array:
    """Return the middle of a square picture, enlarged to its size."""
    size = len(values)
    kept = math.ceil(size / factor)
    first = (size - kept) // 2
    middle = values[first : first + kept, first : first + kept]
    enlarged = ndimage.zoom(middle, (factor, factor, 1), order=1)
    surplus = (len(enlarged) - size) // 2
    return np.asarray(enlarged[surplus : surplus + size, surplus : surplus + size])


def _cloud(decay: float, random: Random) -> FloatArray:
    """Return (256, 256) from 0 to 1: heights of a fractal surface that wraps around (diamond-square)."""
    heights = np.empty((_FOG_SIZE, _FOG_SIZE))
    heights[0, 0] = 0
    step, rough = _FOG_SIZE, 100.0
    while step >= 2:
        _fill_squares(heights, step, rough, random)
        _fill_diamonds(heights, step, rough, random)
        step //= 2
        rough /= decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def _rough_mean(total: FloatArray, rough: float, random: Random) -> FloatArray:
    """Return the mean of four neighbours, `total` being their sum, plus what is drawn."""
    return np.asarray(total / 4 + rough * random.uniform(-rough, rough, total.shape))


def _fill_squares(heights: FloatArray, step: int, rough: float, random: Random) -> None:
    corners = heights[::step, ::step]
    total = corners + np.roll(corners, -1, axis=0)
    total += np.roll(total, -1, axis=1)
    heights[step // 2 :: step, step // 2 :: step] = _rough_mean(total, rough, random)


def _fill_diamonds(heights: FloatArray, step: int, rough: float, random: Random) -> None:
    middles, corners = heights[step // 2 :: step, step // 2 :: step], heights[::step, ::step]
    vertical, horizontal = middles + np.roll(middles, 1, axis=0), corners + np.roll(corners, -1, axis=1)
    heights[::step, step // 2 :: step] = _rough_mean(vertical + horizontal, rough, random)
    horizontal, vertical = middles + np.roll(middles, 1, axis=1), corners + np.roll(corners, -1, axis=0)
    heights[step // 2 :: step, ::step] = _rough_mean(horizontal + vertical, rough, random)
