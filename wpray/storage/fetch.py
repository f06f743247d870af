"""Parallel download from a store to a folder, with one chunk of each file in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wpray.storage.store import Store, retried

_THREADS = 8
_BATCH = 1000  # names submitted to the threads at a time


def fetch(store: Store, names: Sequence[str], folder: Path) -> None:
    """Download files, each of which appears only when complete. Raise StoreError, or OSError if the disk fails."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as threads:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            list(threads.map(lambda name: retried(lambda: store.download(name, folder / name)), batch))
