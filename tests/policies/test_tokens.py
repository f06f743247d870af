from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpray.models.token_layout import BINS256, BINS300, TOKEN_LAYOUTS, TokenLayout

ROLLOUT = Path(__file__).parent.parent / "data" / "rollout"


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS.values(), ids=list(TOKEN_LAYOUTS))
class TestEveryLayout:
    def test_a_bins_center_lies_in_it(self, layout: TokenLayout) -> None:
        every = list(range(layout.bins.count))
        assert layout.to_bins(layout.bin_centers(every)).tolist() == every

    def test_a_value_that_is_not_finite_lies_in_no_bin(self, layout: TokenLayout) -> None:
        with pytest.raises(ValueError, match="not finite"):
            layout.to_bins([0.0, float("nan")])

    def test_no_id_has_two_meanings(self, layout: TokenLayout) -> None:
        families = {family.first: family for family in layout.families}.values()
        ids = [layout.waypoint, layout.duration, *(own for family in families for own in family.ids)]
        assert len(ids) == len(set(ids))
        assert min(ids) == layout.lowest_id

    @given(count=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
    def test_decoding_inverts_encoding(self, layout: TokenLayout, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        most = [family.count for family in layout.families]
        values = rng.integers(0, most, (2, count, len(most)))
        ids = layout.encode(values)
        assert ids.shape == (2, count * layout.tokens_per_waypoint)
        assert (layout.decode(ids) == values).all()
        assert (layout.values(layout.states(values), values[..., -1]) == values).all()

    def test_ids_that_are_no_waypoint_are_refused(self, layout: TokenLayout) -> None:
        whole = layout.encode(np.zeros((1, len(layout.families))))
        layout.decode(whole)
        for place in range(layout.tokens_per_waypoint):
            ids = whole.copy()
            ids[place] = 17
            with pytest.raises(ValueError, match="whole waypoints"):
                layout.decode(ids)


def test_bins_cover_the_interval_evenly() -> None:
    assert BINS256.to_bins([-1, -0.9921875, 0, 0.999, 1]).tolist() == [0, 1, 128, 255, 255]
    assert BINS256.to_bins([-7, 7]).tolist() == [0, 255], "outside values count as the nearest"
    assert BINS256.bin_centers([0, 255]).tolist() == [-0.99609375, 0.99609375]


def test_ids_lie_where_paligemma_has_them() -> None:
    assert BINS256.bins.ids_of([0, 255]).tolist() == [257023, 256768]
    assert BINS256.durations.ids_of([0, 33]).tolist() == [256767, 256734]
    assert (BINS256.waypoint, BINS256.duration, BINS256.tokens_per_waypoint) == (256733, 256732, 11)
    assert BINS300.bins.ids_of([0, 299]).tolist() == [257023, 256724]
    assert BINS300.durations.ids_of([0, 33]).tolist() == [256723, 256690]
    assert (BINS300.waypoint, BINS300.duration, BINS300.tokens_per_waypoint) == (256689, 256688, 10)
    assert BINS300.gripper is not None
    assert BINS300.gripper.ids == [256687, 256686]  # open, closed


def test_recorded_waypoints_are_bin_centers() -> None:
    recorded = np.load(ROLLOUT / "rollout_task0_trial0.npz")["plan_tokens"][..., :8]
    assert (BINS256.bin_centers(BINS256.to_bins(recorded)) == recorded).all()


def test_recorded_values_have_their_recorded_ids_and_centers(golden_io: dict[str, np.ndarray]) -> None:
    """Bin edges included."""
    bins = BINS300.to_bins(golden_io["bin_values"])
    assert np.array_equal(BINS300.bins.ids_of(bins), golden_io["bin_ids"])
    assert np.array_equal(BINS300.bin_centers(bins), golden_io["bin_centers"])


def test_recorded_waypoints_are_encoded_and_decoded_as_recorded(golden_io: dict[str, np.ndarray]) -> None:
    states = np.column_stack([golden_io["waypoint_values"], golden_io["waypoint_grippers"]])
    values = BINS300.values(states, golden_io["waypoint_durations"])
    assert np.array_equal(BINS300.encode(values), golden_io["waypoint_ids"])
    decoded = BINS300.decode(golden_io["waypoint_ids"])
    assert np.array_equal(BINS300.states(decoded), golden_io["waypoint_decoded"])
    assert np.array_equal(decoded[:, -1], golden_io["waypoint_decoded_durations"])
