from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpray.errors import BadInputError
from wpray.policies.waypoint_vla.normalize import NormType, Quantiles, ZScore
from wpray.policies.waypoint_vla.statistics import load_scaling

ROLLOUT = Path(__file__).parent.parent / "data" / "rollout"
LOW, HIGH = np.array([-1, 0, 2], np.float32), np.array([1, 4, 2], np.float32)


def test_q99_maps_percentiles_to_the_unit_interval_and_clips() -> None:
    quantiles = Quantiles(LOW, HIGH)
    assert quantiles.normalize([-1, 0, 2]).tolist() == [-1, -1, 0]
    assert quantiles.normalize([[9, 2, 7], [-9, -1, -7]]).tolist() == [[1, 0, 0], [-1, -1, 0]]
    assert quantiles.normalize([0.5, 1, 2]).dtype == np.float32
    assert quantiles.denormalize([-1, 0.5, 0.9]).tolist() == [-1, 3, 2]
    assert quantiles.denormalize([3, 0, 0])[0] == 3, "the inverse does not clip"


def test_z_score_is_inverted_exactly_enough() -> None:
    z_score = ZScore(LOW, HIGH)
    raw = np.array([0.3, -7, 2.5], np.float32)
    np.testing.assert_allclose(z_score.normalize(raw), [1.3, -1.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(z_score.denormalize(z_score.normalize(raw)), raw, rtol=1e-6)


@given(st.lists(st.floats(-0.99, 0.99), min_size=3, max_size=3))
def test_q99_denormalize_inverts_normalize_inside_the_percentiles(normalized: list[float]) -> None:
    quantiles = Quantiles(LOW, HIGH)
    back = quantiles.normalize(quantiles.denormalize(normalized))
    np.testing.assert_allclose(back[:2], normalized[:2], atol=1e-6)


def test_proprio_is_normalized_bit_for_bit_as_the_reference_does() -> None:
    recorded = np.load(ROLLOUT / "rollout_task0_trial0.npz")
    proprio = load_scaling(ROLLOUT / "dataset_statistics.json", "q99", "libero_object").proprio
    assert proprio.normalize(recorded["proprio"][0]).tobytes() == recorded["seg_start"][0, :8].tobytes()


def _statistics() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROLLOUT / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    return data


def _load(tmp_path: Path, data: Any, suite: str = "libero_object") -> Quantiles:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    action = load_scaling(path, "q99", suite).action
    assert isinstance(action, Quantiles)
    return action


def _named(**scales: float) -> dict[str, Any]:
    data = {}
    for name, scale in scales.items():
        data[name] = copy.deepcopy(_statistics())
        data[name]["action"]["q99"] = [scale] * 7
    return data


def test_flat_and_nested_layouts_mean_the_same(tmp_path: Path) -> None:
    flat, nested = _load(tmp_path, _statistics()), _load(tmp_path, {"my_robot": _statistics()})
    assert flat.low.tolist() == nested.low.tolist()


@pytest.mark.parametrize(
    ("suite", "scale"), [("libero_object", 2), ("libero_10", 3), ("libero_100", 4), ("libero_object_swap", 2)]
)
def test_the_suites_own_data_set_is_chosen(tmp_path: Path, suite: str, scale: float) -> None:
    data = _named(libero_object_no_noops=2, libero_10_no_noops=3, libero_100=4)
    assert _load(tmp_path, data, suite).high[0] == scale


def test_an_unclear_choice_names_the_data_sets(tmp_path: Path) -> None:
    data = _named(libero_object_a=2, libero_object_b=3)
    for suite in ("libero_object", "libero_goal"):
        with pytest.raises(BadInputError, match="libero_object_a, libero_object_b"):
            _load(tmp_path, data, suite)


def _broken(field: str, name: str, value: Any) -> dict[str, Any]:
    data = _statistics()
    data[field][name] = value
    return data


def _without(field: str, name: str) -> dict[str, Any]:
    data = _statistics()
    del data[field][name]
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_broken("action", "q01", [0.0] * 8), "action.q01 must hold 7 numbers, not 8"),
        (_broken("proprio", "q99", [0.0] * 7), "proprio.q99 must hold 8 numbers, not 7"),
        (_broken("proprio", "q99", [-9.0] * 8), "proprio.q01 is above proprio.q99"),
        (_broken("action", "q99", "high"), "must hold 7 numbers, not str"),
        (_broken("action", "q99", [True] * 7), "not a number"),
        (_broken("action", "q99", [1e39] * 7), "float32 cannot"),
        (_broken("action", "q99", [10**400] * 7), "float32 cannot"),
        (_broken("action", "std", [-1.0] * 7), "std is negative"),
        (_without("action", "q01"), "action has no q01"),
        ({"action": _statistics()["action"]}, "no data set with both"),
        ([], "must hold an object"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        (json.dumps(_statistics()).replace("-0.75", "NaN"), "action.q01 holds NaN"),
        ('{"action": {}, "action": {}}', "given twice"),
    ],
)
def test_a_file_that_cannot_be_statistics_is_one_clear_line(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as error:
        _load(tmp_path, data)
    assert "\n" not in str(error.value)


def test_a_missing_or_oversized_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        load_scaling(tmp_path / "absent.json", "q99", "libero_object")
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(BadInputError, match="larger than"):
        load_scaling(tmp_path / "big.json", "q99", "libero_object")


def test_normal_needs_mean_and_std_only(tmp_path: Path) -> None:
    data = _statistics()
    for field in data:
        if field in ("action", "proprio"):
            data[field] = {name: data[field][name] for name in ("mean", "std")}
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(data))
    scaling = load_scaling(path, "normal", "libero_object")
    assert isinstance(scaling.proprio, ZScore)
    with pytest.raises(BadInputError, match="norm_type q99 needs"):
        load_scaling(path, "q99", "libero_object")


GOLDEN = Path(__file__).parent.parent / "data" / "golden_joint"


@pytest.mark.parametrize("norm_type", ["q99", "normal"])
def test_the_newer_layouts_numbers_are_the_recorded_ones(golden_io: dict[str, np.ndarray], norm_type: NormType) -> None:
    """Within a bit or two: the reference computes some in float64."""
    found = load_scaling(GOLDEN / "dataset_statistics.json", norm_type, "libero_spatial")
    assert found.proprio_dim == 6
    normalized = found.proprio.normalize(golden_io["proprio_raw"])
    raw = found.action.denormalize(golden_io["actions_normalized"])
    np.testing.assert_allclose(normalized, golden_io[f"proprio_{norm_type}"], rtol=0, atol=0)
    np.testing.assert_allclose(raw[:, :6], golden_io[f"actions_raw_{norm_type}"][:, :6], rtol=0, atol=0)


def test_a_dimension_that_never_moved_is_zero_as_recorded(golden_io: dict[str, np.ndarray]) -> None:
    scaling = Quantiles(golden_io["constant_q01"], golden_io["constant_q99"])
    assert np.array_equal(scaling.normalize(golden_io["proprio_raw"]), golden_io["constant_proprio_q99"])


def test_the_gripper_of_a_state_is_open_beyond_the_recorded_threshold(golden_io: dict[str, np.ndarray]) -> None:
    found = load_scaling(GOLDEN / "dataset_statistics.json", "q99", "libero_spatial")
    state = found.state(golden_io["state_raw"].astype(np.float64))
    assert state.shape == (16, 7)
    assert state.dtype == np.float32
    assert np.array_equal(state[:, 6], golden_io["gripper_open"])
    assert np.array_equal(state[:, :6], found.proprio.normalize(golden_io["state_raw"][:, :6]))
    assert golden_io["state_raw"][0, 6] == np.float32(0.02)
    assert state[0, 6] == 0


def test_a_file_that_mixes_both_widths_says_so(tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "dataset_statistics.json").read_text())
    data["proprio"]["q99"] = [9.0] * 8
    with pytest.raises(BadInputError, match=r"proprio\.q99 must hold 6 numbers, not 8"):
        _load(tmp_path, data)


def test_a_sum_over_data_sets_is_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"__total__": _statistics(), "my_robot": _statistics()}))
    load_scaling(path, "q99", "libero_object")
