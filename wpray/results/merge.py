"""parts/ -> episodes.parquet and decisions.parquet, some hundred parts in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wpray.errors import RunStoppedError
from wpray.results.atomic import put_in_place, stopped_by
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder

_GROUP = 500  # parts a row group, and in memory at once


def merge(folder: RunFolder, videos: VideoFolder | None = None) -> None:
    """Writes both tables anew, in (suite, task, trial) order and with exactly one row a part, and replaces the old.

    `video_path` is set for the episodes whose video is in `videos`. Raises RunStoppedError, keeping the old tables, if
    there is no room or a part has become unreadable meanwhile.
    """
    try:
        _merge(folder, videos)
    except OSError as error:
        raise stopped_by(folder.path / "episodes.parquet", error) from error
    except pa.ArrowException as error:
        raise RunStoppedError(f"{folder.path}: a part is damaged; the same command runs its trial again") from error


def _merge(folder: RunFolder, videos: VideoFolder | None) -> None:
    episodes_path, decisions_path = folder.path / "episodes.parquet", folder.path / "decisions.parquet"
    parts = folder.parts()
    with (
        _Replacing(episodes_path, EPISODE_SCHEMA) as episodes,
        _Replacing(decisions_path, DECISION_SCHEMA) as decisions,
    ):
        for start in range(0, len(parts), _GROUP):
            table = read_parts(parts[start : start + _GROUP])
            rows = episode_rows(table)
            episodes.write(rows if videos is None else videos.named_in(rows))
            decisions.write(decision_rows(table))


def read_parts(parts: Sequence[Path]) -> pa.Table:
    """The parts' rows, each with its decisions."""
    return pa.concat_tables([_read_part(path) for path in parts])


def _read_part(path: Path) -> pa.Table:
    """One small file: `read_table` would look for a data set, and for threads, at twice the price."""
    with pq.ParquetFile(path) as file:
        return file.read(use_threads=False)


def episode_rows(table: pa.Table) -> pa.Table:
    """The episodes of `read_parts`."""
    return table.select(EPISODE_SCHEMA.names).cast(EPISODE_SCHEMA)


def decision_rows(table: pa.Table) -> pa.Table:
    """The decisions of `read_parts`, a row each."""
    lists = table["decisions"].combine_chunks()
    rows = pc.list_parent_indices(lists)
    structs = lists.flatten()
    keys = table.select(["run_id", "suite", "task_id", "trial"]).take(rows)
    columns = [
        keys[field.name] if field.name in keys.column_names else structs.field(field.name) for field in DECISION_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=DECISION_SCHEMA)


class _Replacing:
    """A Parquet writer whose file appears under its name only once it is complete, and on the disk."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")

    def __enter__(self) -> _Replacing:
        return self

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                put_in_place(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
