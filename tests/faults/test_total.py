"""The whole suite has injected at least as many faults as it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Record

pytestmark = pytest.mark.faults
_FAKE, _REAL = 100, 10


def test_enough_faults_were_survived(survived: Record, request: pytest.FixtureRequest) -> None:
    """Comes last by its file's name; each fault was noted once its test had compared the tables."""
    files = {path for path in Path(__file__).parent.glob("test_*.py") if "mark.faults" in path.read_text()}
    if not files <= {item.path for item in request.session.items}:
        pytest.skip("a part of the suite was asked for")
    real = sum(times for name, (times, _) in survived.faults.items() if name.startswith("real LIBERO"))
    fake = sum(times for times, _ in survived.faults.values()) - real
    assert fake >= _FAKE and real >= _REAL, survived.faults
