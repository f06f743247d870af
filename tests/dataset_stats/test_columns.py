"""The statistics themselves, without TensorFlow: what numpy computes, whatever the number of rows and of calls."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpray.dataset_stats.__main__ import FieldRows, StatisticsBuilder
from wpray.dataset_stats.rlds import RldsEpisode


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e4]))
def test_percentiles_and_extremes_are_numpys_to_the_bit(count: int, dim: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows = (scale * rng.standard_normal((count, dim))).astype(np.float32)
    rows[:, 0] = np.sign(rows[:, 0])
    columns = FieldRows(dim)
    for part in np.array_split(rows, min(count, 5)):
        columns.add(part)
    found = {name: np.array(value, dtype=np.float32) for name, value in columns.statistics().items()}
    assert np.array_equal(found["q01"], np.percentile(rows, 1, axis=0))
    assert np.array_equal(found["q99"], np.percentile(rows, 99, axis=0))
    assert np.array_equal(found["min"], rows.min(axis=0))
    assert np.array_equal(found["max"], rows.max(axis=0))
    assert np.array_equal(found["mean"], rows.mean(axis=0, dtype=np.float64).astype(np.float32))
    np.testing.assert_allclose(found["std"], rows.std(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-30)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        FieldRows(2).add(np.array([[0, np.nan]], dtype=np.float32))


def test_memory_holds_one_column_at_a_time() -> None:
    count, dim = 200_000, 50
    columns = FieldRows(dim)
    for _ in range(10):
        columns.add(np.ones((count // 10, dim), dtype=np.float32))
    tracemalloc.start()
    columns.statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * count  # all rows take 200 bytes a row


def test_the_newer_layout_describes_the_pose_alone_and_counts_an_open_gripper_as_one() -> None:
    rng = np.random.default_rng(0)
    actions, states = (rng.standard_normal((40, dim)).astype(np.float32) for dim in (7, 8))
    actions[:, 6] = np.where(np.arange(40) % 4 == 0, -1, 1)  # a quarter of the steps open
    found = {}
    for layout in ("8d", "6d"):
        statistics = StatisticsBuilder(layout)  # type: ignore[arg-type]
        statistics.add(RldsEpisode(actions, states))
        found[layout] = statistics.as_dict()
    newer, older = found["6d"], found["8d"]
    for name, values in newer["proprio"].items():
        assert values == older["proprio"][name][:6]
        assert newer["action"][name][:6] == older["action"][name][:6]
    assert (newer["action"]["mean"][6], newer["action"]["min"][6], newer["action"]["max"][6]) == (0.25, 0, 1)
    assert (older["action"]["mean"][6], older["action"]["min"][6], older["action"]["max"][6]) == (0.5, -1, 1)
    assert newer["num_transitions"] == older["num_transitions"] == 40
