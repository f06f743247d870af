"""Merge of parts/ into episodes.parquet and decisions.parquet, with some hundred parts in memory at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import BadInputError, RunStoppedError
from wpray.results.atomic import put_in_place, stopped_by, sync_folder
from wpray.results.columns import conform
from wpray.results.merged import (
    DECISIONS,
    EPISODES,
    MergedTables,
    Overlay,
    digest_of,
    digest_of_rows,
    read_table,
)
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA, MERGED_DIGEST
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder

_LOG = logging.getLogger(__name__)


def merge(folder: RunFolder, videos: VideoFolder | None = None) -> None:
    """Rewrite both tables in (suite, task, trial) order with exactly one row per trial.

    Afterwards remove the parts whose rows are in the tables, once these are on the disk and were read back. The caller
    holds the folder's lock. `video_path` is set for the episodes whose video is in `videos`. Raise RunStoppedError if
    the disk is full or a file has become unreadable; the old tables and all parts are then kept.
    """
    try:
        _merge(folder, videos)
    except BadInputError:
        raise
    except OSError as error:
        raise stopped_by(folder.path / EPISODES, error) from error
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunStoppedError(
            f"{folder.path}: a part or table is damaged ({reason}); the same command runs its trials again"
        ) from error


def _merge(folder: RunFolder, videos: VideoFolder | None) -> None:
    base, parts = MergedTables.read(folder.path), folder.parts()
    if base is not None and not parts:
        _name_videos(folder.path, base, videos)
        return
    if base is not None and not base.belong_together and base.decisions is None:
        _LOG.warning("%s: there is no %s; its decisions are lost", folder.path, DECISIONS)
    overlay = Overlay(base, parts)
    _write(folder.path, overlay, videos)
    _remove(overlay)


def _write(path: Path, overlay: Overlay, videos: VideoFolder | None) -> None:
    """Write both tables, read them back, and then give them their names.

    A column that only some parts have is null in the others.
    """
    episodes, decisions = EPISODE_SCHEMA, DECISION_SCHEMA
    while True:
        try:
            _write_as((episodes, decisions), path, overlay, videos)
            return
        except _WiderError as error:
            if "status" in error.schema.names:
                episodes = widened(episodes, error.schema)
            else:
                decisions = widened(decisions, error.schema)


def _write_as(schemas: tuple[pa.Schema, pa.Schema], path: Path, overlay: Overlay, videos: VideoFolder | None) -> None:
    rows = []
    with _replacing(path / EPISODES, schemas[0]) as episodes, _replacing(path / DECISIONS, schemas[1]) as decisions:
        for table, choices in overlay.groups():
            episodes.write(table if videos is None else videos.named_in(table))
            decisions.write(choices)
            rows.append(table.select(["suite", "task_id", "trial", "part_digest"]))
        digest = digest_of_rows(rows)
        episodes.finish(digest)
        decisions.finish(digest)
        _check(episodes.temporary, decisions.temporary, digest)


def _name_videos(path: Path, base: MergedTables, videos: VideoFolder | None) -> None:
    """Rewrite episodes.parquet if videos were added or removed."""
    named = base.episodes if videos is None else videos.named_in(base.episodes)
    if named["video_path"].equals(base.episodes["video_path"]):
        return
    with _replacing(path / EPISODES, named.schema) as episodes:
        episodes.write(named)
        episodes.finish(base.digest)


def _check(episodes: Path, decisions: Path, digest: str) -> None:
    """Read both files back with the checksums of all pages. Raise RunStoppedError if one is not as written."""
    try:
        table, said = read_table(episodes, EPISODE_SCHEMA)
        is_whole = digest == said == digest_of_rows([table])
        with pq.ParquetFile(decisions, page_checksum_verification=True) as file:
            is_whole = is_whole and digest_of(file) == digest
            for number in range(file.num_row_groups):
                file.read_row_group(number)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunStoppedError(
            f"{episodes.parent}: a table cannot be read back ({error}); all parts are kept"
        ) from error
    if not is_whole:
        raise RunStoppedError(f"{episodes.parent}: a table is read back changed; all parts are kept")


def _remove(overlay: Overlay) -> None:
    """Remove the parts whose row, or a better one, is in the tables. Parts that a power cut restores do no harm."""
    for path in overlay.part_digests:
        path.unlink(missing_ok=True)
    for suite in {path.parent for path in overlay.part_digests}:
        sync_folder(str(suite))


def widened(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Return `schema` with the columns that only `other` has, nullable."""
    more = [field.with_nullable(True) for field in other if field.name not in schema.names]
    return pa.schema([*schema, *more], metadata=schema.metadata)


class _WiderError(Exception):
    """Table with a column that the writer was opened without."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__()
        self.schema = schema


class _Replacing:
    """Parquet writer whose file has a temporary name until `put_in_place`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._schema = schema
        self._writer = pq.ParquetWriter(self.temporary, schema, compression="zstd", write_page_checksum=True)

    def write(self, table: pa.Table) -> None:
        """Write a row group. Raise _WiderError if the table has another column."""
        if any(name not in self._schema.names for name in table.column_names):
            raise _WiderError(table.schema)
        if len(table):
            filled = conform(table, self._schema) if len(table.schema) < len(self._schema) else table
            self._writer.write_table(filled.select(self._schema.names))

    def finish(self, digest: str | None) -> None:
        """Write the footer with the digest of the rows."""
        if digest is not None:
            self._writer.add_key_value_metadata({MERGED_DIGEST.decode(): digest})
        self.close()

    def close(self) -> None:
        """Close the file. Raise OSError if its rest cannot be written."""
        self._writer.close()


@contextmanager
def _replacing(path: Path, schema: pa.Schema) -> Iterator[_Replacing]:
    """Open a Parquet writer. Its file gets its name only once it is complete and on the disk."""
    file = _Replacing(path, schema)
    try:
        yield file
        put_in_place(file.temporary, path)
    finally:
        try:
            file.close()
        finally:
            file.temporary.unlink(missing_ok=True)
