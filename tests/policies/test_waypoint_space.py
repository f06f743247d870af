"""What run.json says of waypoints turns them back into what was normalized."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from wpray.config import Config
from wpray.policies.waypoint_vla.statistics import load_scaling
from wpray.policies.waypoint_vla.waypoint_space import waypoint_space

STATISTICS = Path(__file__).parent.parent / "data" / "rollout" / "dataset_statistics.json"


@pytest.mark.parametrize("norm_type", ["q99", "normal"])
def test_scale_and_offset_undo_the_normalization(norm_type: Literal["q99", "normal"]) -> None:
    config = Config(policy="a.module", norm_type=norm_type, dataset_statistics_path=str(STATISTICS))
    scaling = load_scaling(STATISTICS, norm_type, config.task_suite).proprio
    low, high = scaling.denormalize(np.full(8, -0.5)), scaling.denormalize(np.full(8, 0.5))
    proprio = low + np.random.default_rng(0).uniform(0, 1, 8) * (high - low)
    space = waypoint_space(config)
    assert space is not None
    restored = scaling.normalize(proprio) * np.array(space["scale"]) + np.array(space["offset"])
    np.testing.assert_allclose(restored, proprio, rtol=1e-5, atol=1e-6)


def test_unknown_units_are_said_to_be_unknown(tmp_path: Path) -> None:
    assert waypoint_space(Config(policy="a.module")) is None
    assert waypoint_space(Config(policy="a.module", dataset_statistics_path=str(tmp_path / "none"))) is None
    assert waypoint_space(Config(policy="scripted")) == {"scale": [1.0] * 8, "offset": [0.0] * 8}
