"""Versions, commit and host of a result, stored in run.json and compared before two runs are paired."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import wpray
from wpray.benchmarks.factory import BENCHMARKS, load_benchmark
from wpray.system.packages import FROM_A_PATH, PackageSource, source_of

# Number of wpray's outcome-affecting behaviour. Runs of different numbers are not the same experiment: a resume is
# refused and `compare` does not pair them. Raise it by one in a commit that changes the outcome of an episode although
# its configuration stays the same: how a trial is seeded or reset, how an image or the proprio is made, which
# instruction the policy gets, how a plan is executed, how an action is applied, when an episode ends, or how an answer
# is computed from the same weights beyond the last bits. Do not raise it for speed, for a setting whose default changes
# nothing, for new suites or policies, or for what is recorded. A run.json without it has number 1.
PROTOCOL_VERSION = 1

# Packages of the benchmarks that come with wpray: their versions and files decide physics and pixels.
_BUILT_IN = tuple(load_benchmark(name) for name in BENCHMARKS.built_in)
DECISIVE_PACKAGES = tuple(dict.fromkeys(name for benchmark in _BUILT_IN for name in benchmark.packages))
# Distribution names by the name under which a result shows them.
_PACKAGES = {name: owners for benchmark in _BUILT_IN for name, owners in benchmark.packages.items()} | {
    name: (name,) for name in ("numpy", "ray", "pyarrow", "torch")
}
# Versions of the packages that brought them, if they are not wpray's; `benchmark NAME` is one that it names.
POLICY, BENCHMARK = "policy", "benchmark"
_FILES = " files"  # ends the name of a digest in results
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


def alternatives(distribution: str) -> tuple[str, ...]:
    """Return the distributions that provide the same package as this one, itself included; none if it is not known."""
    return next((owners for owners in _PACKAGES.values() if distribution in owners), ())


def package_versions() -> dict[str, str]:
    """Return the versions of Python, wpray and the packages that decide results, if they are installed."""
    versions = {"python": platform.python_version(), "wpray": wpray.__version__}
    for name, candidates in _PACKAGES.items():
        found = source_of(name, candidates)
        if found is not None:
            versions[name] = _version_text(found, candidates)
    return versions


def _version_text(source: PackageSource, candidates: Sequence[str]) -> str:
    if source.distribution is None:
        return FROM_A_PATH
    return source.version if len(candidates) > 1 else source.distribution.version


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
        f"{name}{_FILES}": f"{str(origin['digest'])[:_SHOWN_DIGITS]} ({origin['source']})"
        for name, origin in found.items()
        if isinstance(origin, Mapping) and "digest" in origin and "source" in origin
    }


def decisive_names(*found: Mapping[str, str]) -> list[str]:
    """Return the names of what moves physics, pixels or goals, in which two hosts or sessions of a run must agree."""
    others = (name for one in found for name in one if name.endswith(_FILES) or name.startswith(f"{BENCHMARK} "))
    return list(dict.fromkeys([*DECISIVE_PACKAGES, BENCHMARK, *others]))


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
