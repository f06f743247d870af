"""Folder of this user for what later processes can use again; whoever deletes it loses only time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return its path, existing or not: `wpray` in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "wpray")
