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

    @classmethod
    def of(cls, run: Path, video_out_path: str | None) -> VideoFolder:
        """Return the folder for the configured `video_out_path`; None is a folder in the run's own.

        Raise BadInputError if it is a store's URL, because videos are uploaded with the rest of the run's folder.
        """
        if video_out_path is None:
            return cls(run / _DEFAULT, _DEFAULT)
        place = location_of(video_out_path)
        if isinstance(place, StoreUrl):
            raise BadInputError(f"{place}: videos need a folder; leave it out to put them beside the run's results")
        path = place.absolute()
        return cls(path, str(path))

    def has(self, row: Mapping[str, Any]) -> bool:
        """Return True if the episode's video exists; an older file belongs to another run in the same folder."""
        try:
            written = (self.path / video_name(row)).stat().st_mtime
        except OSError:
            return False
        return self.recorded_as == _DEFAULT or written >= row["ended_at"].timestamp()

    def named_in(self, episodes: pa.Table) -> pa.Table:
        """Return `episodes` with `video_path` set to existing files, and null for the others."""
        here = {entry.name for entry in self.path.glob("*.mp4")}
        rows = episodes.select(["task_name", "trial", "status", "ended_at"]).to_pylist()
        names = [name if (name := video_name(row)) in here and self.has(row) else None for row in rows]
        paths = [f"{self.recorded_as}/{name}" if name else None for name in names]
        index = episodes.schema.get_field_index("video_path")
        return episodes.set_column(index, episodes.schema.field(index), pa.array(paths, type=pa.string()))


def video_name(row: Mapping[str, Any]) -> str:
    """Return `rollout_{task_name}_t{trial}_{status}.mp4` for an episode's row."""
    return f"rollout_{safe_name(row['task_name'])}_t{row['trial']}_{row['status']}.mp4"
