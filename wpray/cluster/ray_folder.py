"""Folder of a local Ray's sockets: their paths have at most 107 bytes, and a scheduler's TMPDIR may use most."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wpray.system import private_folder

_LONGEST_SOCKET = 107  # bytes, on Linux
_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store_0"
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def short_enough(environ: Mapping[str, str] = os.environ, places: Sequence[str] = _SHORT) -> Iterator[str | None]:
    """Yield a private folder for Ray's files, removed at the end; None if Ray's own choice is short enough."""
    own = Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp")
    if _takes_sockets(own) and not _is_another_users(own / "ray"):
        yield None
        return
    place = next((Path(name) for name in places if _takes_sockets(Path(name))), None)
    if place is None:  # Ray then reports what is wrong with its own
        yield None
        return
    held = private_folder.hold(place)
    try:
        yield str(held.path / "ray")
    finally:
        held.release()


def _takes_sockets(place: Path) -> bool:
    if len(os.fsencode(place.absolute())) + len(_BELOW) > _LONGEST_SOCKET:
        return False
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _is_another_users(folder: Path) -> bool:
    return folder.exists() and not os.access(folder, os.W_OK)
