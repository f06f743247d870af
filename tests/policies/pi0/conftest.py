"""A tiny random pi0 checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pi0_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny float32 checkpoint in Transformers' format."""
    pytest.importorskip("transformers")
    from wpray.policies.pi0 import synthetic

    folder = tmp_path_factory.mktemp("pi0")
    synthetic.write(folder, "tiny", "float32")
    return folder
