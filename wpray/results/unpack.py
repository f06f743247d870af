"""Conversion of merged rows back to parts, for tables of two machines that ran the same run in turn."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from wpray.results.atomic import write_atomic
from wpray.results.columns import checksum
from wpray.results.encode import parquet_bytes
from wpray.results.merged import MergedTables, Overlay, keys_of, rank
from wpray.results.names import part_name
from wpray.results.schema import COLUMNS_CRC32, PART_SCHEMA
from wpray.types import TrialKey

_KEYS = ("run_id", "suite", "task_id", "trial")


def unpack(tables: MergedTables, others: MergedTables, folder: Path) -> None:
    """Write parts of the rows of `tables` that `others` lacks or has only as an error; keep existing parts.

    Raise what reading damaged tables raises, and RunStoppedError if a part cannot be written.
    """
    known = dict(zip(others.keys, map(rank, others.episodes.select(["status", "ended_at"]).to_pylist()), strict=True))
    for episodes, decisions in Overlay(tables, ()).groups():
        wanted = keys_of(decisions)
        rows = episodes.select(["suite", "task_id", "trial", "status", "ended_at"]).to_pylist()
        for index, (key, row) in enumerate(zip(keys_of(episodes), rows, strict=True)):
            path = folder / "parts" / part_name(TrialKey.from_row(row))
            if not path.exists() and (key not in known or rank(row) > known[key]):
                path.parent.mkdir(parents=True, exist_ok=True)
                mask = pa.array([other == key for other in wanted], pa.bool_())
                write_atomic(path, part_bytes(episodes.slice(index, 1), decisions.filter(mask)))


def part_bytes(episode: pa.Table, decisions: pa.Table) -> bytes:
    """Return the part of one row and its decisions."""
    choices = decisions.drop_columns(list(_KEYS))
    structs = pa.StructArray.from_arrays([_array(column) for column in choices.columns], fields=list(choices.schema))
    lists = pa.ListArray.from_arrays(pa.array([0, len(choices)], pa.int32()), structs)
    index = episode.schema.get_field_index("part_digest")
    row = episode.set_column(index, episode.schema.field(index), pa.array([None], pa.int64()))
    schema = pa.schema([*row.schema, PART_SCHEMA.field("decisions").with_type(lists.type)])
    schema = schema.with_metadata(PART_SCHEMA.metadata)
    table = pa.Table.from_arrays([*row.columns, pa.chunked_array([lists])], schema=schema)
    return parquet_bytes(table.replace_schema_metadata({**PART_SCHEMA.metadata, COLUMNS_CRC32: checksum(schema)}))


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
