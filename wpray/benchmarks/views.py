"""A camera's image as a policy sees it: turned, resized and, if the policy was trained so, cropped."""

from __future__ import annotations

import numpy as np
from PIL import Image

from wpray.types import POLICY_IMAGE_SIZE, ImageArray

_SIZE = (POLICY_IMAGE_SIZE, POLICY_IMAGE_SIZE)


def policy_view(image: ImageArray) -> ImageArray:
    """(224, 224, 3): robosuite's image rotated by 180 degrees and resized as training data were (PIL bilinear)."""
    rotated = np.ascontiguousarray(image[::-1, ::-1])
    return np.asarray(Image.fromarray(rotated).resize(_SIZE, Image.Resampling.BILINEAR))


def center_crop(image: ImageArray, scale: float) -> ImageArray:
    """(224, 224, 3): the middle of an image of that size, `scale` of its area, resized to it again (PIL bilinear)."""
    side = round(POLICY_IMAGE_SIZE * scale**0.5)
    start = (POLICY_IMAGE_SIZE - side) // 2
    middle = np.ascontiguousarray(image[start : start + side, start : start + side])
    return np.asarray(Image.fromarray(middle).resize(_SIZE, Image.Resampling.BILINEAR))
