"""Types of command-line arguments, which refuse unusable values before a command begins to work."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from wpray.errors import BadInputError
from wpray.storage.url import location_of
from wpray.system.paths import expand


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """Return a type that takes whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {most}")
        return number

    return read


def number(least: float, most: float = 1e6, *, above: bool = False) -> Callable[[str], float]:
    """Return a type that takes finite numbers from `least` (`above`: not `least` itself) to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value <= most or (value == least and not above)):
            low = f"above {least:g}" if above else f"from {least:g}"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number {low} to {most:g}")
        return value

    return read


def location(text: str) -> str:
    """Take a path, with `~` and environment variables expanded, or a URL."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:100]}: {error}") from error


def file_to_write(text: str) -> Path:
    """Take the name of a file that may be there already, in a folder that is there."""
    path = expanded_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: {path.parent} is no folder; create it or name another")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; name another file")
    return path


def folder_to_write(text: str) -> Path:
    """Take the name of a folder that may have to be created."""
    path = expanded_path(text)
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; name another folder")
    return path


def expanded_path(text: str) -> Path:
    """Take a path of the file system, or its URL."""
    try:
        path = location_of(location(text))
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(path, Path):
        raise argparse.ArgumentTypeError(f"{path} is in a store; name a file system's path")
    return path
