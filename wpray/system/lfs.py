"""Git-LFS pointers: three lines of text in place of a large file until `git lfs pull` has run."""

from __future__ import annotations

from pathlib import Path

from wpray.errors import BadInputError

_BEGINS = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, setting: str = "") -> None:
    """Raise BadInputError if `path` is a pointer; `setting` named it. An unreadable file is no pointer."""
    if is_pointer(path):
        named = f"{setting}: " if setting else ""
        raise BadInputError(f"{named}{path} is a git-lfs pointer; run: git lfs pull")


def is_pointer(path: Path) -> bool:
    """Return True for a regular file that begins as a pointer does."""
    try:
        if not path.is_file():  # reading a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(len(_BEGINS)) == _BEGINS
    except (OSError, ValueError):
        return False
