from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpray.policy import waypoint_tokens as tokens

ROLLOUT = Path(__file__).parent.parent / "data" / "rollout"


def test_bins_cover_the_interval_evenly() -> None:
    assert tokens.to_bins([-1, -0.9921875, 0, 0.999, 1]).tolist() == [0, 1, 128, 255, 255]
    assert tokens.to_bins([-7, 7]).tolist() == [0, 255], "outside values count as the nearest"
    assert tokens.bin_centers([0, 255]).tolist() == [-0.99609375, 0.99609375]


@given(st.integers(0, 255))
def test_a_bins_center_lies_in_it(index: int) -> None:
    assert tokens.to_bins(tokens.bin_centers([index])).tolist() == [index]


def test_a_value_that_is_not_finite_lies_in_no_bin() -> None:
    with pytest.raises(ValueError, match="not finite"):
        tokens.to_bins([0.0, float("nan")])


def test_ids_lie_where_paligemma_has_them() -> None:
    assert tokens.bin_ids([0, 255]).tolist() == [257023, 256768]
    assert tokens.duration_ids([0, 33]).tolist() == [256767, 256734]
    assert (tokens.WAYPOINT_TOKEN, tokens.DURATION_TOKEN) == (256733, 256732)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_decoding_inverts_encoding(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bins, durations = rng.integers(0, 256, (2, count, 8)), rng.integers(0, 34, (2, count))
    marks = np.ones((2, count, 1), np.int64)
    ids = [marks * 256733, tokens.bin_ids(bins), marks * 256732, tokens.duration_ids(durations)[..., None]]
    found_bins, found_durations = tokens.decode(np.concatenate(ids, axis=-1).reshape(2, -1))
    assert (found_bins == bins).all() and (found_durations == durations).all()


@pytest.mark.parametrize("place", [0, 3, 9, 10])
def test_ids_that_are_no_waypoint_are_refused(place: int) -> None:
    ids = np.array([256733, *[257000] * 8, 256732, 256750])
    tokens.decode(ids)
    ids[place] = 17
    with pytest.raises(ValueError, match="whole waypoints"):
        tokens.decode(ids)


def test_recorded_waypoints_are_bin_centers() -> None:
    recorded = np.load(ROLLOUT / "rollout_task0_trial0.npz")["plan_tokens"][..., :8]
    assert (tokens.bin_centers(tokens.to_bins(recorded)) == recorded).all()
