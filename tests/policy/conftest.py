"""Shared by the tests of the learned policy."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny float32 checkpoints whose outputs are recorded."""
    pytest.importorskip("torch")
    from tests.tiny_weights import write_checkpoints

    folder = tmp_path_factory.mktemp("golden")
    write_checkpoints(folder)
    return folder
