"""The axis-angle of proprio, at its corners."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wpray.benchmarks.rotation import axis_angle

X = np.array([1.0, 0.0, 0.0])


@pytest.mark.parametrize("degrees", [1, 90, 179, 181, 270, 359])
def test_an_angle_is_not_wrapped(degrees: float) -> None:
    half = math.radians(degrees) / 2
    np.testing.assert_allclose(axis_angle(math.cos(half), math.sin(half) * X), math.radians(degrees) * X, atol=1e-12)


@pytest.mark.parametrize("w", [1.0, 1.0 + 1e-9, -1.0, -1.0 - 1e-9])
def test_no_rotation_and_rounding_beyond_one_give_zeros(w: float) -> None:
    assert axis_angle(w, 1e-12 * X).tolist() == [0, 0, 0]
