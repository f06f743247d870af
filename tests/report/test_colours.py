"""Colours that stand side by side are told apart by people who see no red or no green, on a light and a dark page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from importlib.resources import files

import numpy as np
import pytest

from wpray.report import charts, timeline

SEEN_BY = {
    "everybody": np.eye(3),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("page", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("colours", [charts.OUTCOME_COLOURS, timeline.ACTIVITY_COLOURS], ids=["outcomes", "activities"])
def test_colours_are_told_apart(colours: Mapping[str, str], page: int, eyes: str) -> None:
    empty = re.findall(r"--empty:(#\w+)", files("wpray.report").joinpath("style.css").read_text())[page]
    seen = {name: _lab(value.replace("var(--empty)", empty), SEEN_BY[eyes]) for name, value in colours.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, f"{a} and {b}"  # a just noticeable difference is 2.3


def _lab(colour: str, eyes: np.ndarray) -> np.ndarray:
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(eyes @ linear, 1e-4, 1) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
