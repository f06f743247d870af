"""What a run leaves for later, so that its first action comes sooner."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SLOW = ("scipy.stats", "scipy.spatial", "torch", "matplotlib")


def _imported(names: tuple[str, ...], code: str) -> list[str]:
    """Return which of `names` are imported once a process has run `code`."""
    asked = f"import sys\n{code}\nprint(*[name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()


def test_neither_the_driver_nor_an_env_actor_imports_statistics_before_it_starts() -> None:
    assert _imported(_SLOW, "import wpray.launch, wpray.run.evaluation") == []
    assert _imported(_SLOW, "import wpray.orchestration.actors") == []


@pytest.mark.libero
def test_an_environment_imports_geometry_only_for_policies_that_see_the_truth() -> None:
    assert _imported(_SLOW, "import wpray.benchmarks.libero.environment") == []


def test_the_first_interval_finds_its_statistics_imported() -> None:
    prepared = "from wpray.results import statistics; statistics.prepare()"
    assert _imported(("scipy.stats",), prepared) == ["scipy.stats"]
    assert _imported(("scipy.stats",), "from wpray.results.statistics import wilson; wilson(0, 0)") == []
