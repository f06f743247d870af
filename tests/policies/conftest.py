"""Shared by the tests of the learned policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny float32 checkpoints whose outputs are recorded."""
    pytest.importorskip("torch")
    from tests.tiny_weights import write_checkpoints

    folder = tmp_path_factory.mktemp("golden")
    write_checkpoints(folder)
    return folder


@pytest.fixture(scope="session")
def joint_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{a,b,block}: tiny float32 joint checkpoints; the outputs of a and b are recorded."""
    pytest.importorskip("torch")
    from tests.tiny_weights import block_size, write_joint

    folder = tmp_path_factory.mktemp("joint")
    write_joint(folder / "block", block_size())
    for variant in ("a", "b"):
        write_joint(folder / variant, variant)
    return folder


@pytest.fixture(scope="session")
def golden_io() -> dict[str, np.ndarray]:
    """What the reference of the newer layout computes around its models."""
    with np.load(Path(__file__).parents[1] / "data" / "golden_joint" / "golden_io.npz") as data:
        return dict(data)
