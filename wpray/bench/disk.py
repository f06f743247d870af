"""A folder on a real disk, where creating files costs what it costs in a run's own folder."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_GET_FLAGS, _SET_FLAGS, _TOP_OF_TREES = 0x80086601, 0x40086602, 0x00020000  # Linux: FS_IOC_*ETFLAGS, FS_TOPDIR_FL


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder, away from files that were just deleted.

    An ext4 without a journal gives no inode anew for minutes after its file was deleted: a new file next to the
    thousands that the benchmark before has deleted took up to 0.6 ms of CPU more, spent on looking past those.
    """
    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as path:
        with contextlib.suppress(OSError):  # another file system
            _spread_subfolders(path)
        yield Path(tempfile.mkdtemp(dir=path))


def disk_of(path: Path) -> str:
    """The type of its file system, such as ext4; a tmpfs is no disk, and its syncs cost nothing."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mounts, place = {point: kind for _, point, kind, *_ in lines}, path.resolve()
    return next((mounts[str(folder)] for folder in (place, *place.parents) if str(folder) in mounts), "unknown")


def _spread_subfolders(path: str) -> None:
    """Has ext4 put each subfolder, and its files, into a part of the disk of its own."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        flags[0] |= _TOP_OF_TREES
        fcntl.ioctl(descriptor, _SET_FLAGS, flags)
    finally:
        os.close(descriptor)
