"""What run.json says of waypoints turns them back into what was normalized."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies import factory, noop
from wpray.policies.base import WaypointUnits
from wpray.policies.waypoint_vla.statistics import load_scaling
from wpray.policies.waypoint_vla.units import waypoint_units

STATISTICS = Path(__file__).parent.parent / "data" / "rollout" / "dataset_statistics.json"


@pytest.mark.parametrize("norm_type", ["q99", "normal"])
def test_scale_and_offset_undo_the_normalization(norm_type: Literal["q99", "normal"]) -> None:
    config = Config(policy="a.module", norm_type=norm_type, dataset_statistics_path=str(STATISTICS))
    scaling = load_scaling(STATISTICS, norm_type, config.task_suite).proprio
    low, high = scaling.denormalize(np.full(8, -0.5)), scaling.denormalize(np.full(8, 0.5))
    proprio = low + np.random.default_rng(0).uniform(0, 1, 8) * (high - low)
    units = waypoint_units(config)
    assert units is not None
    restored = scaling.normalize(proprio) * np.array(units.scale) + np.array(units.offset)
    np.testing.assert_allclose(restored, proprio, rtol=1e-5, atol=1e-6)


def test_unknown_units_are_said_to_be_unknown(tmp_path: Path) -> None:
    assert waypoint_units(Config(policy="a.module")) is None
    assert waypoint_units(Config(policy="a.module", dataset_statistics_path=str(tmp_path / "none"))) is None
    assert factory.waypoint_units(Config(policy="noop")) is None
    assert factory.waypoint_units(Config(policy="noop", dataset_statistics_path=str(STATISTICS))) is not None
    assert factory.waypoint_units(Config(policy="scripted")) == WaypointUnits((1.0,) * 8, (0.0,) * 8)


def test_units_that_no_reader_could_use_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scale in ((1.0, 1.0), (1.0,) * 7, (np.nan,) * 8):
        with pytest.raises(ValueError, match="as many finite numbers"):
            WaypointUnits(scale)
    monkeypatch.setattr(noop, "waypoint_units", lambda _: {"scale": [1.0] * 8}, raising=False)
    with pytest.raises(BadInputError, match="waypoint_units of noop must return WaypointUnits, not"):
        factory.waypoint_units(Config(policy="noop"))
