"""List of a result folder's files, written on the cluster and checked on the machine that fetches them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from wpray.errors import WprayError
from wpray.provenance.record import file_sha256

RUN_INFO = "run.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(WprayError, ValueError):
    """Error for a list that this project did not write, or that names files outside the folder."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """File of a result folder."""

    name: str  # relative to the folder, with slashes
    size: int  # bytes
    sha256: str  # hex digits


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Content of a result folder; run.json comes last because its presence makes a folder a run."""

    folder: str  # absolute, on the machine that wrote it
    run_id: str
    files: tuple[ManifestFile, ...]

    @property
    def size(self) -> int:
        """Total size of all files, bytes."""
        return sum(file.size for file in self.files)

    def as_json(self) -> bytes:
        """Return the JSON that `read_manifest` reads."""
        return json.dumps(asdict(self)).encode()


def make_manifest(folder: Path) -> RunManifest:
    """Return the list and hashes of the files in `folder`, except the lock and partial files.

    Raise OSError or ValueError if the folder holds no run.
    """
    run_id = json.loads((folder / RUN_INFO).read_text())["run_id"]
    names = sorted(_names(folder), key=lambda name: (name == RUN_INFO, name))
    files = (ManifestFile(name, (folder / name).stat().st_size, file_sha256(folder / name)) for name in names)
    return RunManifest(str(folder), run_id, tuple(files))


def read_manifest(data: bytes) -> RunManifest:
    """Return the manifest in `data`, which comes over a network. Raise ManifestError unless it is valid."""
    try:
        parsed = json.loads(data)
        files = tuple(ManifestFile(**file) for file in parsed["files"])
        manifest = RunManifest(parsed["folder"], parsed["run_id"], files)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ManifestError(f"the cluster's list of files is not readable ({type(error).__name__})") from error
    _check(manifest)
    return manifest


def _names(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if _is_inside(relative) and path.is_file() and not path.is_symlink():
                yield relative


def _check(manifest: RunManifest) -> None:
    if not all(isinstance(text, str) and text for text in (manifest.folder, manifest.run_id)):
        raise ManifestError("the cluster's list of files does not say of which run it is")
    for file in manifest.files:
        if not _is_inside(file.name):
            raise ManifestError(f"the cluster's list of files names {str(file.name)[:100]!r}, outside of the folder")
        if type(file.size) is not int or file.size < 0 or not _SHA256.fullmatch(str(file.sha256)):
            raise ManifestError(f"the cluster's list of files has no size or hash of {file.name[:100]!r}")
    if len({file.name for file in manifest.files}) != len(manifest.files):
        raise ManifestError("the cluster's list of files names one twice")
    if not manifest.files or manifest.files[-1].name != RUN_INFO:
        raise ManifestError(f"the cluster's list of files does not end with {RUN_INFO}")


def _is_inside(name: object) -> bool:
    """Return whether `name` is a normalized relative path without `..` or hidden parts."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    path = PurePosixPath(name)
    plain = not path.is_absolute() and str(path) == name and name != "."
    return plain and not any(part.startswith(".") for part in path.parts)
