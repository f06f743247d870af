"""A camera's picture as a policy sees it: turned, resized and, if the policy was trained so, cropped."""

from __future__ import annotations

import numpy as np
from PIL import Image

from wpray.types import ImageArray, ImageSpec

_BILINEAR = Image.Resampling.BILINEAR
_USUAL = ImageSpec()


def policy_view(picture: ImageArray, spec: ImageSpec = _USUAL) -> ImageArray:
    """Return (height, width, 3): a camera's picture, rows from the bottom as robosuite's, as `spec` says.

    The resizing is PIL's bilinear filter, as training data were made with.
    """
    turned = np.ascontiguousarray(picture[::-1, ::-1]) if spec.rotated else np.ascontiguousarray(picture)
    resized = _padded(turned, spec) if spec.resize == "pad" else _resized(turned, spec.height, spec.width)
    return resized if spec.crop_scale is None else center_crop(resized, spec.crop_scale)


def center_crop(image: ImageArray, scale: float) -> ImageArray:
    """Return the middle of an image, `scale` of its area, resized to the image's size again."""
    height, width = image.shape[:2]
    rows, columns = round(height * scale**0.5), round(width * scale**0.5)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    return _resized(middle, height, width)


def _resized(image: ImageArray, height: int, width: int) -> ImageArray:
    return np.asarray(Image.fromarray(image).resize((width, height), _BILINEAR))


def _padded(image: ImageArray, spec: ImageSpec) -> ImageArray:
    """Return the image resized with its aspect ratio kept, in the middle of a black one of the requested size.

    The sizes are rounded as openpi's client rounds them, because the pixels of its policies' training data are such.
    """
    height, width = image.shape[:2]
    if (height, width) == (spec.height, spec.width):
        return image
    ratio = max(width / spec.width, height / spec.height)
    rows, columns = int(height / ratio), int(width / ratio)
    top, left = max(0, int((spec.height - rows) / 2)), max(0, int((spec.width - columns) / 2))
    padded = np.zeros((spec.height, spec.width, 3), dtype=np.uint8)
    padded[top : top + rows, left : left + columns] = _resized(image, rows, columns)
    return padded
