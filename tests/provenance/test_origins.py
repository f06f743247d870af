"""A result names what was imported: an installed distribution, or the checkout that stands before it on the path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wpray.config import Config
from wpray.doctor import software
from wpray.provenance import origins, record
from wpray.provenance.origins import PackageOrigin
from wpray.run.machine import check_machine
from wpray.system.packages import FROM_A_PATH, source_of

ROOT = Path(__file__).parents[2]
_SAY = """
import json, sys
from wpray.provenance import origins
from wpray.config import Config
from wpray.run.machine import check_machine
suite = sys.argv[1]
found = {name: origin.as_dict() for name, origin in origins.origins(suite).items()}
odd = check_machine(Config(task_suite=suite))[1]
imported = sorted({"mujoco", "robosuite", "libero", "bddl"} & sys.modules.keys())
print(json.dumps([found, origins.identity(suite), odd, imported]))
"""


def _said(*before: Path, suite: str = "libero_object") -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The origins, the identity and the odd lines of a process with folders on its PYTHONPATH."""
    path = os.pathsep.join([*map(str, before), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", _SAY, suite],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        timeout=120,
    )
    found, identity, odd, imported = json.loads(done.stdout)
    assert imported == []
    return found, identity, odd


def _copy_of(package: str, folder: Path) -> Path:
    source = source_of(package, ())
    assert source is not None
    return Path(shutil.copytree(source.folder, folder / package, ignore=shutil.ignore_patterns("__pycache__")))


def _package(folder: Path, name: str, content: str = "x = 1\n") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content)
    return folder / name


@pytest.mark.libero
def test_a_checkout_on_the_path_is_named_and_its_changed_goal_found(tmp_path: Path) -> None:
    installed, identity, odd = _said()
    assert installed["libero"]["kind"] == "distribution" and not any("origins" in line for line in odd)
    libero = _copy_of("libero", tmp_path / "checkout")
    same, path_identity, odd = _said(tmp_path / "checkout")
    assert same["libero"]["digest"] == installed["libero"]["digest"]  # content, wherever it lies
    assert same["libero"]["kind"] == "path" and path_identity["libero"] == FROM_A_PATH != identity["libero"]
    assert any(f"libero is imported from {libero}, not from an installed distribution" in line for line in odd)
    goal = next((libero / "libero" / "bddl_files" / "libero_object").glob("*alphabet*"))
    text = goal.read_text()
    goal.write_text(text.replace("(In alphabet_soup_1 basket", "(On alphabet_soup_1 basket"))
    assert goal.read_text() != text
    assert _said(tmp_path / "checkout")[0]["libero"]["digest"] != installed["libero"]["digest"]


@pytest.mark.libero
def test_other_suites_tasks_decide_nothing(tmp_path: Path) -> None:
    libero = _copy_of("libero", tmp_path) / "libero"
    before = {suite: _said(tmp_path, suite=suite)[0]["libero"]["digest"] for suite in ("libero_goal", "libero_10")}
    state = next((libero / "init_files" / "libero_goal").iterdir())
    state.write_bytes(state.read_bytes() + b"x")
    assert _said(tmp_path, suite="libero_10")[0]["libero"]["digest"] == before["libero_10"]
    assert _said(tmp_path, suite="libero_goal")[0]["libero"]["digest"] != before["libero_goal"]
    (libero / "envs" / "predicates" / "base_predicates.py").write_text("")
    assert _said(tmp_path, suite="libero_10")[0]["libero"]["digest"] != before["libero_10"]


@pytest.mark.parametrize("package", ["mujoco", "robosuite", "bddl", "numpy", "torch"])
def test_every_package_may_stand_on_the_path(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _package(tmp_path, package)
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = source_of(package, (package,))
    assert source is not None and (source.kind, source.name) == ("path", f"path {folder}")
    if package != "bddl":
        assert record.package_versions()[package] == FROM_A_PATH


def test_a_distribution_elsewhere_on_the_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "robosuite")
    (tmp_path / "robosuite-9.9.dist-info").mkdir()
    (tmp_path / "robosuite-9.9.dist-info" / "METADATA").write_text("Name: robosuite\nVersion: 9.9\n")
    monkeypatch.delitem(sys.modules, "robosuite", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = source_of("robosuite", ("robosuite",))
    assert source is not None and source.name == "robosuite 9.9"
    assert record.package_versions()["robosuite"] == "9.9"


def test_an_editable_installation_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _package(tmp_path / "src tree", "robosuite")
    info = tmp_path / "site" / "robosuite-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: robosuite\nVersion: 9.9\n")
    (info / "direct_url.json").write_text(json.dumps({"url": folder.parent.as_uri(), "dir_info": {"editable": True}}))
    monkeypatch.delitem(sys.modules, "robosuite", raising=False)
    for place in (folder.parent, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(place))
    source = source_of("robosuite", ("robosuite",))
    assert source is not None and source.kind == "editable"
    assert source.name == f"robosuite 9.9, editable, in {folder}"


def test_what_is_not_installed_has_no_source() -> None:
    assert source_of("no_such_package", ("no-such-package",)) is None


def _install(folder: Path, distribution: str, version: str, package: str, *entries: str) -> None:
    """Write what pip would into a folder of packages."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{package}\n")
    (info / "entry_points.txt").write_text("\n".join(entries))
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise AssertionError('is not imported for its version')\n")


def test_policies_and_benchmarks_of_other_packages_are_known_by_their_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = ("[wpray.policies]", "lab_down = down_lab.policies:Down", "[wpray.benchmarks]", "reached = down_lab.b:B")
    _install(tmp_path / "site", "down-lab", "1.0", "down_lab", *entries)
    (tmp_path / "here" / "loose").mkdir(parents=True)
    (tmp_path / "here" / "loose" / "__init__.py").touch()
    for place in ("here", "site"):
        monkeypatch.syspath_prepend(str(tmp_path / place))
    monkeypatch.setattr("wpray.benchmarks.factory.installed", lambda: ("libero", "fake", "reached"))
    both = {"policy": "down-lab 1.0", "benchmark": "down-lab 1.0"}
    assert origins.part_versions("reached_1", "auto", "lab_down") == both
    assert origins.part_versions("any", "down_lab.b:B", "down_lab.policies:Down") == both
    assert origins.part_versions("fake", "auto", "loose.policy:Own") == {"policy": FROM_A_PATH}
    for own in ("noop", "wpray.policies.noop:NoopPolicy", "unknown", "no_such_package.policy:P", ""):
        assert origins.part_versions("fake", "auto", own) == {}


def test_the_fake_suite_needs_no_digest() -> None:
    assert origins.origins("fake") == {}
    assert origins.identity("fake") == record.package_versions()


def test_the_doctor_and_every_run_say_what_is_not_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "mujoco": PackageOrigin("distribution", "mujoco 3.3.2", "0" * 64),
        "robosuite": PackageOrigin("distribution", "robosuite 1.4.0", "0" * 64, 2, ("a.py", "b.py")),
        "libero": PackageOrigin("path", "path /x/LIBERO/libero", "0" * 64),
    }
    monkeypatch.setattr(origins, "origins", lambda *_: found)
    robosuite, libero = software.check_origins(Config())
    assert (robosuite.status, libero.status) == ("warn", "warn")
    assert robosuite.message == "robosuite has 2 files that are not as robosuite 1.4.0 was installed, such as a.py"
    assert libero.message == "libero is imported from /x/LIBERO/libero, not from an installed distribution"
    assert any(libero.message in line for line in check_machine(Config(task_suite="fake"))[1])
