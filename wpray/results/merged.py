"""Merged tables, and the union of them with newer parts.

A trial may have a row in the merged table and one in a part, because a resumed run writes a part beside the old row and
a kill between a merge and the removal of its parts leaves both. Of two rows, an outcome counts before an error, then
the one that ended later. So the order in which tables and parts are read, copied or replaced does not matter.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from wpray.errors import DamagedRunError
from wpray.results.columns import check_version, conform, version_of
from wpray.results.names import PartKey, part_key, part_key_of_path
from wpray.results.parts import decision_rows, episode_rows, read_parts
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA, MERGED_DIGEST
from wpray.types import EpisodeStatus

EPISODES, DECISIONS = "episodes.parquet", "decisions.parquet"
EPISODES_AT_ONCE = 500  # episodes in memory at once
_KEY = ("suite", "task_id", "trial")
_KEYS = pa.schema([DECISION_SCHEMA.field(name) for name in _KEY])
_ATTEMPT = ("status", "attempt", "worker", "started_at", "ended_at")


@dataclass(frozen=True)
class MergedTables:
    """Tables episodes.parquet and decisions.parquet of a folder."""

    episodes: pa.Table  # EPISODE_SCHEMA, followed by unknown columns
    digest: str | None  # of the parts in `episodes`; None before 1.1
    decisions: pq.ParquetFile | None  # None if it is missing or belongs to another merge
    decisions_digest: str | None

    @classmethod
    def read(cls, folder: Path) -> MergedTables | None:
        """Read the folder's tables; None if it has no episodes.parquet.

        Raise ValueError, OSError or one of Arrow's errors if they are damaged, DamagedRunError if a trial has two rows
        or no outcome, NewerSchemaError if a newer version wrote them.
        """
        if not (folder / EPISODES).exists():
            return None
        table, digest = read_table(folder / EPISODES, EPISODE_SCHEMA)
        _check_rows(table, folder / EPISODES)
        decisions = _opened(folder / DECISIONS) if (folder / DECISIONS).exists() else None
        theirs = None if decisions is None else digest_of(decisions)
        return cls(table, digest, decisions, theirs)

    @property
    def belong_together(self) -> bool:
        """True if decisions.parquet exists and belongs to the same merge as episodes.parquet.

        A missing digest does not prove another merge, because other programs drop it when they rewrite a table.
        """
        if self.decisions is None:
            return False
        return None in (self.digest, self.decisions_digest) or self.digest == self.decisions_digest

    @cached_property
    def keys(self) -> list[PartKey]:
        """Return the keys of the rows of `episodes`."""
        return keys_of(self.episodes)


def read_table(path: Path, schema: pa.Schema) -> tuple[pa.Table, str | None]:
    """Return a table in the form of `schema`, and the digest of its merge. Raise what `MergedTables.read` raises."""
    with _opened(path) as file:
        return conform(file.read(), schema), digest_of(file)


def check_table(path: Path) -> None:
    """Read a merged table to its end, some rows at a time. Raise what `MergedTables.read` raises."""
    schema = {EPISODES: EPISODE_SCHEMA, DECISIONS: DECISION_SCHEMA}[path.name]
    with _opened(path) as file:
        for number in range(file.num_row_groups):
            conform(file.read_row_group(number), schema)
        conform(file.schema_arrow.empty_table(), schema)


def digest_of_rows(episodes: Sequence[pa.Table]) -> str:
    """Return the digest of the parts from which `episodes` were merged, row by row."""
    digest = hashlib.sha256()
    for table in episodes:
        columns = [table[name].to_pylist() for name in (*_KEY, "part_digest")]
        for row in zip(*columns, strict=True):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def keys_of(table: pa.Table) -> list[PartKey]:
    """Return the key of each row."""
    columns = [table[name].to_pylist() for name in _KEY]
    return [part_key(key) for key in zip(*columns, strict=True)]


@dataclass
class Overlay:
    """Union of merged tables and parts, in (suite, task, trial) order."""

    base: MergedTables | None
    parts: Sequence[Path]
    unmerged: int = 0  # parts that are not in the merged table, after `groups`
    strays: int = 0  # decisions of episodes without a row, after `groups`
    part_digests: dict[Path, int] = field(default_factory=dict)  # of the parts that count, after `groups`

    def groups(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield episodes and their decisions, of some hundred trials at a time.

        Raise ValueError, OSError or one of Arrow's errors if a file is damaged.
        """
        paths = {part_key_of_path(path): path for path in self.parts}
        rows = {} if self.base is None else {key: index for index, key in enumerate(self.base.keys)}
        cursor = _Cursor(self.base)
        keys = sorted(paths.keys() | rows.keys())
        for start in range(0, len(keys), EPISODES_AT_ONCE):
            group = keys[start : start + EPISODES_AT_ONCE]
            base = self._base_rows([rows[key] for key in group if key in rows])
            here = [paths[key] for key in group if key in paths]
            parts = read_parts(here) if here else None
            decisions = cursor.upto(group[-1])
            self.strays += sum(key not in rows and key not in paths for key in keys_of(decisions))
            yield self._overlaid(base, parts, here, decisions)
        self.strays += cursor.count_rest()

    def _base_rows(self, indices: list[int]) -> pa.Table:
        if self.base is None:
            return EPISODE_SCHEMA.empty_table()
        return self.base.episodes.take(pa.array(indices, pa.int64()))

    def _overlaid(
        self, base: pa.Table, parts: pa.Table | None, paths: list[Path], decisions: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        if parts is None:
            return base, _of_keys(decisions, set(keys_of(base)))
        rows = episode_rows(parts)
        keys = keys_of(rows)
        if keys != [part_key_of_path(path) for path in paths]:
            raise ValueError("a part is not of the trial that its name says")
        merged = dict(zip(keys_of(base), _bookkeeping(base), strict=True))
        counts, videos = [], []
        for number, (key, row) in enumerate(zip(keys, _bookkeeping(rows), strict=True)):
            other = merged.get(key)
            is_same = other is not None and _is_same(row, other)
            self.unmerged += not is_same
            self.part_digests[paths[number]] = row["part_digest"]
            if other is None or is_same or not _counts_before(other, row):
                counts.append(number)
                videos.append(other["video_path"] if other is not None and is_same else None)
                merged.pop(key, None)
        if len(counts) < len(rows):
            rows, parts = (table.take(pa.array(counts, pa.int64())) for table in (rows, parts))
        rows = _with_videos(rows, videos)
        kept = base.filter(pa.array([key in merged for key in keys_of(base)], pa.bool_()))
        episodes = in_order(joined([kept, rows]))
        found = joined([_of_keys(decisions, merged.keys()), decision_rows(parts)])
        return episodes, in_order(found)


def joined(tables: list[pa.Table]) -> pa.Table:
    """Return the rows of all tables; a column that only some have is null in the others."""
    filled = [table for table in tables if len(table)] or tables[:1]
    if all(table.schema.equals(filled[0].schema) for table in filled):
        return pa.concat_tables(filled)
    return pa.concat_tables(filled, promote_options="permissive")


def in_order(table: pa.Table) -> pa.Table:
    """Return the rows in (suite, task, trial) order; rows of the same trial keep their order."""
    keys = keys_of(table)
    if all(a <= b for a, b in itertools.pairwise(keys)):
        return table
    return table.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64()))


class _Cursor:
    """Cursor over the merged decisions, which reads one row group at a time."""

    def __init__(self, base: MergedTables | None) -> None:
        self._pieces = _pieces(None if base is None else base.decisions)
        self._held = DECISION_SCHEMA.empty_table()
        self._is_over = False

    def upto(self, last: PartKey) -> pa.Table:
        """Return the rows up to the key `last` that were not returned before."""
        while not self._is_over and (not len(self._held) or keys_of(self._held.slice(len(self._held) - 1))[0] <= last):
            piece = next(self._pieces, None)
            self._is_over = piece is None
            self._held = self._held if piece is None else joined([self._held, piece])
        keys = keys_of(self._held)
        count = sum(key <= last for key in keys)
        found, self._held = self._held.slice(0, count), self._held.slice(count)
        return found

    def count_rest(self) -> int:
        """Return the number of rows that were not returned."""
        return len(self._held) + sum(len(piece) for piece in self._pieces)


def _pieces(file: pq.ParquetFile | None) -> Iterator[pa.Table]:
    """Yield row groups in order, or the whole table at once if another program wrote it in another order."""
    if file is None:
        return
    keys = keys_of(conform(file.read(columns=list(_KEY)), _KEYS))
    if all(a <= b for a, b in itertools.pairwise(keys)):
        for number in range(file.num_row_groups):
            yield conform(file.read_row_group(number), DECISION_SCHEMA)
    else:
        yield in_order(conform(file.read(), DECISION_SCHEMA))


def _check_rows(episodes: pa.Table, path: Path) -> None:
    keys = Counter(zip(*(episodes[name].to_pylist() for name in _KEY), strict=True))
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise DamagedRunError(
            f"{path}: {len(twice)} trials have more than one row, such as {twice[0]}: which one counts is not known"
        )
    odd = set(episodes["status"].to_pylist()) - set(get_args(EpisodeStatus))
    if odd:
        raise DamagedRunError(f"{path}: column status holds {min(odd)[:40]!r}, which is no outcome of wpray's")


def _opened(path: Path) -> pq.ParquetFile:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    check_version(version_of(file.schema_arrow), str(path))
    return file


def digest_of(file: pq.ParquetFile) -> str | None:
    """Return the digest of the merge that wrote a table; None before 1.1."""
    digest = (file.metadata.metadata or {}).get(MERGED_DIGEST)
    return None if digest is None else digest.decode(errors="replace")


def _bookkeeping(episodes: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = episodes.select([*_ATTEMPT, "part_digest", "video_path"]).to_pylist()
    return rows


def _is_same(part: dict[str, Any], merged: dict[str, Any]) -> bool:
    """Return True if the merged row comes from this part; before 1.1, the attempt is compared instead."""
    if merged["part_digest"] is not None:
        return bool(part["part_digest"] == merged["part_digest"])
    return all(part[name] == merged[name] for name in _ATTEMPT)


def _counts_before(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return rank(row) > rank(other)


def rank(row: dict[str, Any]) -> tuple[bool, Any]:
    """Return the rank of a row; of two rows of one trial, the one with the larger rank counts."""
    return row["status"] != "error", row["ended_at"]


def _of_keys(decisions: pa.Table, keys: Any) -> pa.Table:
    found = keys_of(decisions)
    return decisions if keys >= set(found) else decisions.filter(pa.array([key in keys for key in found], pa.bool_()))


def _with_videos(rows: pa.Table, videos: list[str | None]) -> pa.Table:
    index = rows.schema.get_field_index("video_path")
    return rows.set_column(index, rows.schema.field(index), pa.array(videos, pa.string()))
