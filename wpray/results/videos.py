"""Folder and names of a run's videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wpray.errors import BadInputError
from wpray.results.writer import safe_name
from wpray.storage.url import StoreUrl, location_of

_DEFAULT = "videos"


@dataclass(frozen=True, slots=True)
class VideoFolder:
    """Folder of a run's videos: OUTPUT/videos, or `video_out_path`."""

    path: Path
    recorded_as: str  # prefix of file names in episodes.parquet
    by_suite: bool = False  # a folder a suite: suites may have tasks of one name

    @classmethod
    def of(cls, run: Path, video_out_path: str | None, by_suite: bool = False) -> VideoFolder:
        """`video_out_path` as configured; None: inside the run's folder, named relative to it.

        Raise BadInputError if it is a store's URL, because videos are uploaded with the rest of the run's folder.
        """
        if video_out_path is None:
            return cls(run / _DEFAULT, _DEFAULT, by_suite)
        place = location_of(video_out_path)
        if isinstance(place, StoreUrl):
            raise BadInputError(f"{place}: videos need a folder; leave it out to put them beside the run's results")
        path = place.absolute()
        return cls(path, str(path), by_suite)

    def has(self, row: Mapping[str, Any]) -> bool:
        """Return True if the episode's video exists; an older file belongs to another run in the same folder."""
        try:
            written = (self.path / video_name(row, self.by_suite)).stat().st_mtime
        except OSError:
            return False
        return self.recorded_as == _DEFAULT or written >= row["ended_at"].timestamp()

    def named_in(self, episodes: pa.Table) -> pa.Table:
        """Return `episodes` with `video_path` set to existing files, and null for the others."""
        here = {entry.relative_to(self.path).as_posix() for entry in self.path.glob("*/" * self.by_suite + "*.mp4")}
        rows = episodes.select(["suite", "task_name", "trial", "status", "ended_at"]).to_pylist()
        named = [video_name(row, self.by_suite) for row in rows]
        names = [name if name in here and self.has(row) else None for name, row in zip(named, rows, strict=True)]
        paths = [f"{self.recorded_as}/{name}" if name else None for name in names]
        index = episodes.schema.get_field_index("video_path")
        return episodes.set_column(index, episodes.schema.field(index), pa.array(paths, type=pa.string()))


def video_name(row: Mapping[str, Any], by_suite: bool = False) -> str:
    """Return `rollout_{task_name}_t{trial}_{status}.mp4` of an episode's row, `by_suite` in a folder of its suite."""
    name = f"rollout_{safe_name(row['task_name'])}_t{row['trial']}_{row['status']}.mp4"
    return f"{safe_name(row['suite'])}/{name}" if by_suite else name
