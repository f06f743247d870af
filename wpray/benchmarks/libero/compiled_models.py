"""Cache of compiled MuJoCo models between processes: loading one takes a fraction of the time of compiling it.

A model has the same bits either way, except for its `signature`, which only names the mjSpec that it was compiled from.
Its key covers all that compiling depends on: the XML, the content of every file that the XML names, MuJoCo's library
and the processor. An entry that is damaged, or that somebody else could have written, is never loaded; a cache that
cannot be read or written costs only time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import mujoco
import numpy as np
import pyarrow

from wpray.benchmarks.libero.compiling import one_at_a_time
from wpray.system.cache_folder import cache_folder

_CODEC, _SUFFIX = "lz4", ".mjb.lz4"
_BLOCK = 2**20  # bytes
_FORMAT = 1  # of keys and entries
_LIMIT = 6 * 2**30  # bytes of all entries, which have 60 to 150 MB: LIBERO's four suites of ten tasks
_KEPT_FREE = 10 * 2**30  # bytes of the disk
_ABANDONED_S = 3600.0  # age of a file that a killed process left half written
# Elements that name files. A model with any other element that names one, or that takes in other models, is compiled.
_NAME_FILES = frozenset(("mesh", "texture", "hfield", "skin"))
_KINDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # lines of /proc/cpuinfo
_TAKE_IN_OTHERS = frozenset(("include", "attach", "model", "extension", "plugin"))


# Digest of each file when this process first compiled it. MuJoCo keeps files in memory by path and time of change.
_compiled_from: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Source:
    """All that a compiled model depends on."""

    xml: str
    digests: Mapping[str, str]  # SHA-256 of the content of every file that the XML names, by absolute path

    @classmethod
    def read(cls, xml: str) -> Source | None:
        """Return the source as it is now; None if the model may depend on more, or a file cannot be read."""
        try:
            files = named_files(xml)
            return None if files is None else cls(xml, {path: _file_digest(path) for path in files})
        except (OSError, ElementTree.ParseError):  # MuJoCo says what is wrong with it
            return None

    @property
    def key(self) -> str:
        """Name of the model: a SHA-256, hex."""
        parts = [str(_FORMAT), mujoco.__version__, *_libraries(), _processor(), self.xml, *self.digests.values()]
        sizes = ",".join(str(len(part)) for part in parts)
        return hashlib.sha256("\0".join([sizes, *parts]).encode()).hexdigest()


def compiled(xml: str) -> mujoco.MjModel:
    """Return what MuJoCo compiles from `xml`, from the cache if a process has compiled it before.

    Processes of this machine that need the same model at the same time compile it once. Raises what MuJoCo raises.
    """
    source, models = Source.read(xml), ModelCache(cache_folder() / "models")
    if source is None or not models.is_private():
        return _compile(xml)
    key = source.key
    if not models.has(key):
        with one_at_a_time(f"model-{key[:16]}"):
            if not models.has(key):  # another process may have compiled it meanwhile
                return _compile_and_save(source, models)
    return models.load(key) or _compile_and_save(source, models)


def _compile_and_save(source: Source, models: ModelCache) -> mujoco.MjModel:
    model = _compile(source.xml)
    if _is_surely_of(source):
        models.save(source.key, model)
    return model


def _compile(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml)


def _is_surely_of(source: Source) -> bool:
    """Return whether what has just been compiled had the content that the key names, not an earlier or a later one."""
    first = [_compiled_from.setdefault(path, digest) for path, digest in source.digests.items()]
    return first == list(source.digests.values()) and Source.read(source.xml) == source


def named_files(xml: str) -> list[str] | None:
    """Return the absolute paths of the files that `xml` names, each once; None if it may depend on others."""
    paths: dict[str, None] = {}
    for element in ElementTree.fromstring(xml).iter():
        named = [value for name, value in element.attrib.items() if name.startswith("file")]
        known = element.tag in _NAME_FILES and all(map(os.path.isabs, named))
        if element.tag in _TAKE_IN_OTHERS or "strippath" in element.attrib or (named and not known):
            return None
        paths |= dict.fromkeys(named)
    return list(paths)


class ModelCache:
    """Folder of compiled models, `KEY.DIGEST.mjb.lz4`; the digest is that of the entry's content."""

    def __init__(self, folder: Path, limit: int = _LIMIT) -> None:
        self._folder, self._limit = folder, limit

    def is_private(self) -> bool:
        """Make the folder if it is missing; return whether nobody but this user can write into it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _is_own(self._folder.stat())
        except OSError:
            return False

    def has(self, key: str) -> bool:
        """Return whether there is an entry of the key; it may be damaged."""
        return bool(self._entries(f"{key}.*{_SUFFIX}"))

    def load(self, key: str) -> mujoco.MjModel | None:
        """Return the model of the key, None if there is none. Remove an entry that is damaged or not this user's."""
        for path in self._entries(f"{key}.*{_SUFFIX}"):
            with contextlib.suppress(OSError, ValueError), _open_itself(path) as file:
                if _is_own(os.fstat(file.fileno())) and _digest(file) == path.name.split(".")[1]:
                    os.utime(path)  # for `_shrink`, which removes what nobody has used for longest
                    return _decompressed(file)
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def save(self, key: str, model: mujoco.MjModel) -> None:
        """Write the entry in one piece, and remove those above the limit that nobody has used for longest.

        Do nothing if the disk is nearly full or cannot be written.
        """
        content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, content)
        entry = pyarrow.compress(content, _CODEC)  # to 40%; decompressing takes a tenth of a second
        name = f"{key}.{hashlib.sha256(entry).hexdigest()}{_SUFFIX}"
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._folder).free > entry.size + _KEPT_FREE:
                self._write(self._folder / name, entry)
                self._shrink()

    def _write(self, path: Path, entry: pyarrow.Buffer) -> None:
        handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=self._folder)
        try:
            with open(handle, "wb") as file:
                file.write(entry)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def _shrink(self) -> None:
        for path in self._entries("*.tmp"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        total = 0
        for path in self._entries(f"*{_SUFFIX}"):
            total += path.stat().st_size
            if total > self._limit:
                path.unlink(missing_ok=True)

    def _entries(self, pattern: str) -> list[Path]:
        """Return the files of the pattern, the one that was used last first."""
        ages = {}
        for path in self._folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                ages[path] = path.lstat().st_mtime_ns
        return sorted(ages, key=lambda path: -ages[path])


def _is_own(found: os.stat_result) -> bool:
    """Return whether it is this user's own folder or regular file, and nobody else may write to it."""
    right_kind = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    return right_kind and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _open_itself(path: Path) -> IO[bytes]:
    """Open a file for reading, not what a link of its name points to."""
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _decompressed(file: IO[bytes]) -> mujoco.MjModel:
    """Return the model of an entry. It passes through memory, because MuJoCo wants the path of a file."""
    file.seek(0)
    handle = os.memfd_create("model")
    try:
        with pyarrow.CompressedInputStream(file, _CODEC) as stream:
            while block := stream.read(_BLOCK):
                os.write(handle, block)
        return mujoco.MjModel.from_binary_path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _file_digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return _digest(file)


@cache
def _libraries() -> tuple[str, ...]:
    """Return the digests of MuJoCo's library and plugins, because a version may be built in several ways."""
    folder = Path(mujoco.__file__).parent
    return tuple(_file_digest(path) for path in sorted([*folder.glob("libmujoco*"), *folder.glob("plugin/*")]))


@cache
def _processor() -> str:
    """Return what of this machine decides which of its functions the C library takes, and so their last bits."""
    lines: Iterable[str] = ()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    kinds = {
        line for line in lines if line.startswith(("model name", "flags", "CPU implementer", "CPU part", "Features"))
    }
    return "\n".join([platform.machine(), *platform.libc_ver(), *sorted(kinds)])
