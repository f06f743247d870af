"""The policy's images are the reference's, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wpray.benchmarks.views import center_crop, policy_view
from wpray.types import ImageSpec


@pytest.mark.parametrize(
    ("camera", "name", "scale"),
    [
        ("agentview", "base_nocrop", None),
        ("eye_in_hand", "wrist_nocrop", None),
        ("agentview", "base_crop090", 0.9),
        ("eye_in_hand", "wrist_crop090", 0.9),
        ("agentview", "base_crop080", 0.8),
    ],
)
def test_images_are_turned_resized_and_cropped_as_recorded(camera: str, name: str, scale: float | None) -> None:
    with np.load(Path(__file__).parents[1] / "data" / "golden_joint" / "golden_io.npz") as golden:
        seen, expected = policy_view(golden[f"camera_{camera}"]), golden[f"picture_{name}"]
    assert np.array_equal(seen if scale is None else center_crop(seen, scale), expected)


def test_a_crop_of_the_whole_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert np.array_equal(center_crop(image, 1.0), image)


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def test_the_usual_view_is_that_of_the_usual_specification() -> None:
    picture = _picture(256, 256)
    assert np.array_equal(policy_view(picture), policy_view(picture, ImageSpec()))
    cropped = policy_view(picture, ImageSpec(crop_scale=0.9))
    assert np.array_equal(cropped, center_crop(policy_view(picture), 0.9))


def test_padding_a_square_picture_to_a_square_adds_no_border() -> None:
    picture = _picture(256, 256)
    assert np.array_equal(policy_view(picture, ImageSpec(resize="pad")), policy_view(picture))


def test_padding_keeps_the_aspect_ratio_between_black_borders() -> None:
    view = policy_view(_picture(480, 640), ImageSpec(resize="pad", rotated=False))
    assert view.shape == (224, 224, 3)
    assert not view[:28].any() and not view[-28:].any()
    whole = policy_view(_picture(480, 640), ImageSpec(168, 224, rotated=False))
    assert np.array_equal(view[28:-28], whole)
    upright = policy_view(_picture(640, 480), ImageSpec(resize="pad", rotated=False))
    assert not upright[:, :28].any() and upright[:, 28:-28].all()


@pytest.mark.parametrize("resize", ["bilinear", "pad"])
def test_a_picture_of_the_right_size_is_left_as_it_is_and_turned_only_if_asked_for(resize: str) -> None:
    picture = _picture(90, 120)
    spec = ImageSpec(90, 120, rotated=False, resize=resize)  # type: ignore[arg-type]
    assert np.array_equal(policy_view(picture, spec), picture)
    turned = ImageSpec(90, 120, rotated=True, resize=resize)  # type: ignore[arg-type]
    assert np.array_equal(policy_view(picture, turned), picture[::-1, ::-1])


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(100, 200, 71, 141), (64, 48, 45, 34)])
def test_a_crop_keeps_the_share_of_both_sides(height: int, width: int, rows: int, columns: int) -> None:
    inside = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    inside[top : top + rows, left : left + columns] = 200
    assert (center_crop(inside, 0.5) == 200).all()
    inside[top : top + rows, left] = 0
    assert not (center_crop(inside, 0.5) == 200).all()
