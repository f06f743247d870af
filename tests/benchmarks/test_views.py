"""The policy's images are the reference's, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wpray.benchmarks.views import center_crop, policy_view


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
