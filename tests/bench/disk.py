"""Temporary folder on a real disk, where creating a file costs as much as in a run's own folder."""

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
    """Create a temporary folder away from files that were just deleted.

    An ext4 without a journal does not reuse an inode for minutes after its file was deleted. A new file next to the
    thousands that the previous benchmark deleted took up to 0.6 ms more CPU, spent on skipping their inodes.
    """
    with tempfile.TemporaryDirectory(prefix="wpray-bench-") as path:
        with contextlib.suppress(OSError):  # other file systems do not support it
            _spread_subfolders(path)
        yield Path(tempfile.mkdtemp(dir=path))


def disk_of(path: Path) -> str:
    """Return the file system's type, such as ext4. A tmpfs is no disk: syncing to it costs nothing."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mounts, place = {point: kind for _, point, kind, *_ in lines}, path.resolve()
    return next((mounts[str(folder)] for folder in (place, *place.parents) if str(folder) in mounts), "unknown")


def _spread_subfolders(path: str) -> None:
    """Make ext4 put each subfolder and its files into a separate part of the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        flags[0] |= _TOP_OF_TREES
        fcntl.ioctl(descriptor, _SET_FLAGS, flags)
    finally:
        os.close(descriptor)
