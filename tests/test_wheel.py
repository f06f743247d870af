"""The wheel holds the package, and neither tests nor the benchmarks that only maintainers run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files of a wheel that pip builds from the repository, without a network."""
    pytest.importorskip("pip"), pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=300)
    (wheel,) = folder.glob("wpray-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_is_in_the_wheel(names: set[str]) -> None:
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "wpray").rglob("*.py")} <= names


def test_nothing_but_the_package_is_in_the_wheel(names: set[str]) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"wpray"}
    assert not [name for name in names if "test" in Path(name).stem and name != "wpray/testing.py"]


def test_benchmarks_for_maintainers_stay_in_the_repository(names: set[str]) -> None:
    kept = {path.name for path in (ROOT / "tests" / "bench").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert kept and not {f"wpray/bench/{name}" for name in kept} & names
