"""Places that packages are imported from, and their files, without importing any of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

FROM_A_PATH = "unknown (from a path)"  # version of a package that no installed distribution provides


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Place that the import of a package comes from."""

    kind: Literal["distribution", "editable", "path"]  # path: PYTHONPATH, the working directory, a .pth file
    folder: Path  # folder of the package
    distribution: Distribution | None  # distribution that provides it; None for a path

    @property
    def name(self) -> str:
        """'robosuite 1.4.0', 'robosuite 1.4.0, editable, in /home/me/robosuite' or 'path /home/me/robosuite'."""
        if self.distribution is None:
            return f"path {self.folder}"
        return self.version if self.kind == "distribution" else f"{self.version}, editable, in {self.folder}"

    @property
    def version(self) -> str:
        """'robosuite 1.4.0', wherever it is."""
        if self.distribution is None:
            return FROM_A_PATH
        return f"{self.distribution.metadata['Name']} {self.distribution.version}"


def source_of(package: str, candidates: tuple[str, ...]) -> PackageSource | None:
    """Return where `import package` would find it, without importing it; None if it would not.

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
                return PackageSource(kind, folder, distribution)
    return PackageSource("path", folder, None)


def _provides(distribution: Distribution, package: str, folder: Path) -> Literal["distribution", "editable"] | None:
    """Return how a distribution provides the package in `folder`, if it does."""
    if Path(str(distribution.locate_file(package))).resolve() == folder.resolve():
        return "distribution"
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = bool(origin.get("dir_info", {}).get("editable"))
        root = Path(unquote(urlparse(origin.get("url", "")).path))
    except (ValueError, AttributeError):
        return None
    return "editable" if editable and folder.resolve().is_relative_to(root.resolve()) else None


def files_below(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (name relative to `root`, path) of every file that may decide, links followed.

    Bytecode, hidden files, folders named `__pycache__` or `datasets` and empty files are left out.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(os.path.realpath(root), followlinks=True):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if name not in ("__pycache__", "datasets") and name[0] != "."]
        for name in names:
            if name[0] != "." and not name.endswith((".pyc", ".pyo")):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, os.path.realpath(root)).replace(os.sep, "/"), path
