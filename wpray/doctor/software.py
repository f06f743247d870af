"""Checks of Python, packages and the OpenGL library, without heavy imports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.provenance.origins import oddities
from wpray.provenance.record import DECISIVE_PACKAGES, alternatives, package_versions
from wpray.registry import POLICIES
from wpray.system import gl
from wpray.trackers.factory import check_tracker

_OLDEST, _NEWEST = (3, 11), (3, 13)
_SHOWN = (*DECISIVE_PACKAGES, "numpy", "ray", "torch")


def check_python(config: Config) -> list[CheckResult]:
    """Check the interpreter's version."""
    if _OLDEST <= sys.version_info[:2] <= _NEWEST:
        return [CheckResult("Python", "pass", platform.python_version())]
    remedy = "use one of them: WPRAY_PYTHON=python3.12 bash cluster/bootstrap.sh setup"
    return [CheckResult("Python", "fail", f"{platform.python_version()} is not one of 3.11, 3.12, 3.13", remedy)]


def check_packages(config: Config) -> list[CheckResult]:
    """Compare the installed packages with those that wpray is tested with."""
    problems = [problem for requirement in _requirements(config) if (problem := _check_package(requirement))]
    if problems:
        return problems
    versions = package_versions()
    shown = ", ".join(_named(name, versions[name]) for name in _SHOWN if name in versions)
    return [CheckResult("packages", "pass", shown)]


def check_origins(config: Config) -> list[CheckResult]:
    """Warn if an import does not come from its installed distribution, for example because of PYTHONPATH."""
    remedy = "results name its files by digest; to run what is installed, see PYTHONPATH and the working directory"
    return [CheckResult("origins", "warn", text, remedy) for text in oddities(config.suites, config.benchmark)]


def check_opengl(config: Config) -> list[CheckResult]:
    """Check that the renderer's library is installed; another check renders with it."""
    if not config.load_benchmark().uses_opengl:
        return []
    renderer = gl.select_renderer(config.env.renderer)
    return [CheckResult("OpenGL", "pass", f"{renderer}: its library is installed")]


def check_the_tracker(config: Config) -> list[CheckResult]:
    """Check that the package of the configured tracker is installed."""
    if config.track is None:
        return []
    check_tracker(config.track)
    return [CheckResult("tracker", "pass", f"{config.track} can be imported")]


def _requirements(config: Config) -> Iterator[Requirement]:
    """Yield the requirements of wpray and of the extra that the configured policy needs.

    There are none if wpray is a plain folder.
    """
    try:
        texts = importlib.metadata.requires("wpray") or []
    except importlib.metadata.PackageNotFoundError:
        return
    extras = ("", POLICIES.extras.get(config.policy, ""))
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _named(name: str, version: str) -> str:
    """Return 'numpy 2.1.0'; the version of a package of several publishers comes with the publisher's name."""
    return version if version.startswith(name) else f"{name} {version}"


def _check_package(requirement: Requirement) -> CheckResult | None:
    """Return a problem with an installed package, or None if the package is tested."""
    remedy = f"run: pip install '{requirement.name}{requirement.specifier}'"
    found = _version(requirement.name)
    if found is None:
        other = next((name for name in alternatives(requirement.name) if _version(name)), None)
        if other:
            what = f"{other} {_version(other)} in place of the tested {requirement.name}{requirement.specifier}"
            return CheckResult("packages", "warn", what, remedy)
    if found is None:
        return CheckResult("packages", "fail", f"{requirement.name} is not installed", remedy)
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return CheckResult(
        "packages", "warn", f"{requirement.name} {found} is not the tested {requirement.specifier}", remedy
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
