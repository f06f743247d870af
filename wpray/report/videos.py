"""Videos of the report: embedded as long as they are small, linked otherwise."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wpray.results.names import safe_name
from wpray.results.reader import Run
from wpray.types import EpisodeRow

_KEY = ("suite", "task_id", "trial")


@dataclass(frozen=True, slots=True)
class Video:
    """Video of an episode as the page shows it."""

    row: EpisodeRow
    source: str  # data: URI, or a path relative to the page
    anchor: str


def collect(run: Run, rows: Sequence[EpisodeRow], page: Path, embed_bytes: int) -> list[Video]:
    """Return the videos: embedded until `embed_bytes` are used up (failures first), the others linked."""
    found = [(row, path) for row in rows if (path := run.video(row["video_path"])) is not None]
    several = len({row["suite"] for row in rows}) > 1
    videos = []
    for row, path in sorted(
        found, key=lambda pair: (pair[0]["status"] != "failure", *(pair[0][name] for name in _KEY))
    ):
        size = path.stat().st_size
        embedded = size <= embed_bytes
        embed_bytes -= size if embedded else 0
        source = _embedded(path) if embedded else _linked(path, page)
        videos.append(Video(row, source, _anchor(row, several)))
    return videos


def _anchor(row: EpisodeRow, several: bool) -> str:
    suite = f"{safe_name(row['suite'])}-" if several else ""
    return f"video-{suite}{row['task_id']}-{row['trial']}"


def _embedded(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _linked(path: Path, page: Path) -> str:
    return quote(os.path.relpath(path.resolve(), page.resolve().parent))
