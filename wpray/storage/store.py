"""Files under a URL, named relative to it. Only this module uses the file systems of pyarrow and fsspec."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from wpray.errors import BadInputError, WprayError, wrapping_errors
from wpray.storage.url import StoreUrl

_Read = TypeVar("_Read")
_CHUNK = 2**20
_TRIES, _PAUSE_S = 3, 0.2
_REMEDY = "check the URL, the network and the credentials in the environment"
# These show a file only when it is complete; elsewhere it is written under another name and moved.
_WHOLE_OR_NOT = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "memory"})
_TUNED = {
    "s3": "allow_delayed_open=true",  # one request per small file instead of three
    "gs": "retry_limit_seconds=20",  # the default is 15 minutes; callers here retry themselves
    "gcs": "retry_limit_seconds=20",
}


class StoreError(WprayError):
    """Error for an operation that a store did not perform; one line with the reason."""


def retried(read: Callable[[], _Read]) -> _Read:
    """Return the result of `read`, tried up to three times because a busy store may fail. Raise StoreError."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except StoreError:
            time.sleep(_PAUSE_S)
    return read()


class Store:
    """Thread-safe access to the files under a URL. Every method raises StoreError if the store fails."""

    def __init__(self, url: StoreUrl, filesystem: Any, base: str, forget: Callable[[], None]) -> None:
        """`forget` clears the file system's cache of listings."""
        self.url = url
        self._fs, self._base, self._forget = filesystem, base.rstrip("/"), forget

    @classmethod
    def connect(cls, url: StoreUrl) -> Store:
        """Connect to a store. Raise BadInputError if no library supports the scheme, or the store does not exist."""
        try:
            return cls(url, *_through_pyarrow(url), lambda: None)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if "nrecognized filesystem" not in str(error) and "not built" not in str(error):
                raise BadInputError(f"{url}: {_line(error)}; write it as s3://BUCKET/PATH") from error
        except OSError as error:
            raise BadInputError(f"{url}: {_line(error)}; {_REMEDY}") from error
        return cls(url, *_through_fsspec(url))

    def check(self) -> datetime | None:
        """Write and remove a small file, as a run would; return the store's time, or None if it reports none.

        Raise BadInputError, one line with the remedy, if that is not possible.
        """
        name = f".probe-{secrets.token_hex(4)}"
        try:
            self.write(name, b"wpray may write here\n")
            now = self.modified(name)
            with contextlib.suppress(StoreError):  # credentials that may write need not be allowed to delete
                self.delete(name)
        except StoreError as error:
            raise BadInputError(f"{error}; {_REMEDY}") from error
        return now

    def list_names(self) -> set[str]:
        """Return the names directly under the URL."""
        return {name.partition("/")[0] for name in self._list(recursive=False)}

    def sizes(self) -> dict[str, int]:
        """Return the size of every file in bytes, by name."""
        return self._list(recursive=True)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        return retried(lambda: self._read(name))

    def holds(self, name: str) -> bool:
        """Return whether a file exists."""
        with self._store_errors(f"look at {name}"):
            self._forget()
            return bool(self._fs.get_file_info(self._path(name)).type == fs.FileType.File)

    def modified(self, name: str) -> datetime | None:
        """Return when a file was written, by the store's clock; None if the file or the time is missing."""
        with self._store_errors(f"look at {name}"):
            self._forget()
            moment: datetime | None = self._fs.get_file_info(self._path(name)).mtime
        return None if moment is None else moment.astimezone(UTC)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file."""
        self._put(name, io.BytesIO(data))

    def upload(self, name: str, path: Path, moved: Callable[[], None] = lambda: None) -> None:
        """Replace a file by the one at `path`; call `moved` whenever the store has accepted a chunk.

        Raise FileNotFoundError if `path` does not exist.
        """
        with path.open("rb") as file:
            self._put(name, file, moved)

    def download(self, name: str, path: Path) -> None:
        """Download a file to `path`, where it appears when complete. Raise OSError if the disk fails."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file, self._store_errors(f"read {name}"), self._opened(name) as source:
                shutil.copyfileobj(source, file, _CHUNK)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        with self._store_errors(f"delete {name}"), contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def _read(self, name: str) -> bytes | None:
        with self._store_errors(f"read {name}"), contextlib.suppress(FileNotFoundError), self._opened(name) as file:
            data: bytes = file.read()
            return data
        return None

    def _put(self, name: str, source: IO[bytes], moved: Callable[[], None] = lambda: None) -> None:
        path = self._path(name)
        with self._store_errors(f"write {name}"):
            if self.url.scheme in _WHOLE_OR_NOT:
                self._copy(source, path, moved)
                return
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            folder, _, last = path.rpartition("/")
            temporary = f"{folder}/.{last}.{secrets.token_hex(4)}.tmp"
            self._copy(source, temporary, moved)
            self._fs.move(temporary, path)

    def _copy(self, source: IO[bytes], path: str, moved: Callable[[], None]) -> None:
        with self._fs.open_output_stream(path) as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                moved()

    def _opened(self, name: str) -> Any:
        return self._fs.open_input_stream(self._path(name))

    def _list(self, recursive: bool) -> dict[str, int]:
        with self._store_errors("list what is there"):
            self._forget()
            found = self._fs.get_file_info(fs.FileSelector(self._base, recursive=recursive, allow_not_found=True))
        kept = (info for info in found if not recursive or info.type == fs.FileType.File)
        return {info.path[len(self._base) :].strip("/"): info.size or 0 for info in kept}

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextlib.contextmanager
    def _store_errors(self, what: str) -> Iterator[None]:
        try:
            with wrapping_errors(
                lambda error: StoreError(f"{self.url}: cannot {what} ({_line(error)})"), FileNotFoundError
            ):
                yield
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}: cannot {what} (not found)") from error


def _through_pyarrow(url: StoreUrl) -> tuple[Any, str]:
    tuned = _TUNED.get(url.scheme)
    if tuned is not None and tuned.partition("=")[0] not in url.query:
        try:
            filesystem, base = fs.FileSystem.from_uri(f"{url.base}?{'&'.join(filter(None, (url.query, tuned)))}")
            return filesystem, base
        except pa.ArrowInvalid:
            pass  # an older pyarrow without that option, or an invalid URL, which fails below
    filesystem, base = fs.FileSystem.from_uri(str(url))
    return filesystem, base


def _through_fsspec(url: StoreUrl) -> tuple[Any, str, Callable[[], None]]:
    try:
        import fsspec
    except ImportError as error:
        raise BadInputError(f"{url}: pyarrow does not know {url.scheme}://; pip install fsspec") from error
    if url.query:
        raise BadInputError(f"{url}: {url.scheme}:// takes no options; leave out what follows the question mark")
    try:
        with wrapping_errors(lambda error: BadInputError(f"{url}: {_line(error)}; {_REMEDY}"), ImportError, ValueError):
            found, path = fsspec.core.url_to_fs(url.base)  # some file systems connect here
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None)
        remedy = f"pip install {missing}" if missing else "install what it names"
        raise BadInputError(f"{url}: {_line(error)}; {remedy}") from error
    except ValueError as error:
        raise BadInputError(f"{url}: {_line(error)}; use s3://, gs://, abfs:// or what fsspec knows") from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path, found.invalidate_cache


def _line(error: BaseException) -> str:
    text = " ".join((str(error).strip() or type(error).__name__).split("\n")[0].split())
    return text[:300]
