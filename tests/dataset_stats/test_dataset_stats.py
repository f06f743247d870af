"""Runs rlds_checks.py in a process of its own: TensorFlow crashes beside torch, ray and pyarrow together."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_datasets") is None, reason="needs the extra wpray[rlds]")
def test_statistics_of_rlds_data_sets() -> None:
    checks = Path(__file__).with_name("rlds_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checks.parents[2], timeout=500)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
