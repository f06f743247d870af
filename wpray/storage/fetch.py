"""Brings files from a store to a folder: several at once, a chunk of each in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wpray.storage.store import Store, retried

_THREADS = 8
_BATCH = 1000  # names handed to the threads at once


def fetch(store: Store, names: Sequence[str], folder: Path) -> None:
    """Every file appears whole or not at all. Raises StoreError, or OSError if the disk does not take them."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as threads:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            list(threads.map(lambda name: retried(lambda: store.download(name, folder / name)), batch))
