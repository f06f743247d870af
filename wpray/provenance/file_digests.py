"""Digests of large folders, cheap enough to compute at every start."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from wpray.system.cache_folder import cache_folder

_SMALL = 256 * 1024  # bytes; a larger file of an intact installation is not read
_SETTLED_S = 2.0  # a younger file may change again within one tick of its file system's clock
_COMPILED = (".so", ".pyd", ".dylib", ".dll")
_THREADS = 4  # hashing releases the interpreter's lock


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """Entry of a file in an installed distribution's RECORD."""

    size: int
    sha256: str  # hex
    installed_ns: int  # time at which the installation ended


@dataclass(frozen=True, slots=True)
class FolderDigest:
    """Digest of several files' content."""

    digest: str  # SHA-256, hex, over every file's name and content
    changed: tuple[str, ...]  # names of files that a RECORD lists otherwise or not at all; empty without a RECORD


def recorded_files(distribution: Distribution) -> dict[str, RecordEntry]:
    """Return the RECORD entries of an installed distribution by absolute path; empty if it has no RECORD."""
    rows = list(csv.reader((distribution.read_text("RECORD") or "").splitlines()))
    own = next((row[0] for row in rows if row and row[0].endswith(".dist-info/RECORD")), None)
    if own is None:
        return {}
    try:
        installed_ns = os.stat(str(distribution.locate_file(own))).st_mtime_ns
    except OSError:
        return {}
    root = os.path.realpath(str(distribution.locate_file("")))
    found = {}
    for name, digest, size in (row for row in rows if len(row) == 3):
        if digest.startswith("sha256=") and size.isdecimal():
            encoded = digest.removeprefix("sha256=")
            sha256 = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
            found[os.path.normpath(f"{root}/{name}")] = RecordEntry(int(size), sha256, installed_ns)
    return found


def folder_digest(files: Mapping[str, str], recorded: Mapping[str, RecordEntry], cache: Path | None) -> FolderDigest:
    """Return the digest of `files` (name -> path), which is the same in any folder.

    It covers the content of every file that is not empty. A file of at most 256 KiB is read, unless an earlier process
    read it when its size, inode and both of its times were the same (`cache`, a JSON file; None or a file that is not
    writable keeps nothing). A larger file that a RECORD lists is not read if it has the recorded size and has not been
    modified since the installation ended: the recorded hash counts. So a large file of an installation escapes if it
    was replaced by one of equal size with an older modification time. Compiled libraries of an intact installation are
    left out, because they differ by platform although the version is the same.
    """
    stats = {name: os.stat(path) for name, path in files.items() if os.path.exists(path)}
    stats = {name: stat for name, stat in stats.items() if stat.st_size}
    known = _DigestCache.read(cache)
    hashes = {name: _known_hash(files[name], stat, recorded, known) for name, stat in stats.items()}
    unread = [name for name, digest in hashes.items() if digest is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, digest in zip(unread, pool.map(_sha256, [files[name] for name in unread]), strict=True):
            hashes[name] = digest
            known.put(files[name], stats[name], digest)
    known.write()
    as_installed = {name for name in hashes if (r := recorded.get(files[name])) and r.sha256 == hashes[name]}
    decisive = [name for name in hashes if not (name.endswith(_COMPILED) and name in as_installed)]
    text = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(decisive))
    changed = sorted(hashes.keys() - as_installed) if recorded else []
    return FolderDigest(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(), tuple(changed))


def _known_hash(
    path: str, stat: os.stat_result, recorded: Mapping[str, RecordEntry], known: _DigestCache
) -> str | None:
    """Return a file's hash if it is known without reading the file, else None."""
    entry = recorded.get(path)
    if entry is None or stat.st_size <= _SMALL:
        return known.get(path, stat)
    intact = stat.st_size == entry.size and stat.st_mtime_ns <= entry.installed_ns
    return entry.sha256 if intact else known.get(path, stat)


def cache_file(root: Path) -> Path:
    """Return the file that keeps the hashes of the files below `root` between processes."""
    name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    return cache_folder() / "digests" / f"{name}.json"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _DigestCache:
    """Hashes of files by path, each with the file's size, times and inode."""

    def __init__(self, path: Path | None, entries: dict[str, list[object]]) -> None:
        self._path, self._entries, self._changed = path, entries, False

    @classmethod
    def read(cls, path: Path | None) -> _DigestCache:
        """Return the cache in the file `path`; an empty one if the file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            data = json.loads(path.read_text()) if path else {}
            if isinstance(data, dict):
                return cls(path, {name: entry for name, entry in data.items() if _is_entry(entry)})
        return cls(path, {})

    def get(self, path: str, stat: os.stat_result) -> str | None:
        """Return the hash of a file that has not changed, else None."""
        entry = self._entries.get(path)
        return str(entry[-1]) if entry is not None and entry[:-1] == _state(stat) else None

    def put(self, path: str, stat: os.stat_result, digest: str) -> None:
        """Keep a hash, unless the file has just changed."""
        if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S:
            self._entries[path] = [*_state(stat), digest]
            self._changed = True

    def write(self) -> None:
        """Write new hashes for the next process, if the folder can be written."""
        if self._path is None or not self._changed:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._entries))
            temporary.replace(self._path)


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 5 and isinstance(entry[-1], str)


def _state(stat: os.stat_result) -> list[object]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
