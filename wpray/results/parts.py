"""Parts: small files with an episode's row and its decisions, which a merge packs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wpray.errors import BadInputError
from wpray.results.columns import ColumnsError, check_version, checksum, conform, read_metadata, version_of
from wpray.results.schema import (
    COLUMNS_CRC32,
    DECISION_SCHEMA,
    EPISODE_SCHEMA,
    PART_SCHEMA,
    SCHEMA_VERSION,
    TRAJECTORY_CRC32,
)
from wpray.types import EpisodeStatus

_DECISIONS = PART_SCHEMA.field("decisions")
_CHECKSUM = checksum(PART_SCHEMA)
_DECISION_FIELDS = pa.schema(list(_DECISIONS.type.value_type))


def read_part(path: Path) -> pa.Table:
    """Return a part's row, with `part_digest` and `trajectory_crc32` filled.

    Raise ValueError, OSError, MemoryError or one of Arrow's errors if it is damaged, NewerSchemaError if a newer
    version wrote it, BadInputError if it is whole, but lacks a column that every version has.
    """
    data = path.read_bytes()
    # `read_table` would take twice as long for so small a file, because it sets up a data set and threads.
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        table = file.read(use_threads=False)
    is_whole = _check_columns(table.schema, path)
    if table.num_rows != 1:
        raise ValueError(f"has {table.num_rows} rows")
    try:
        row = _conformed(table)
    except ColumnsError as error:
        if is_whole:
            raise BadInputError(f"{path}: {error}; this version of wpray cannot read the run") from error
        raise
    if row["status"][0].as_py() not in get_args(EpisodeStatus):
        raise ValueError("has no status")
    return _with_digests(row, data, read_metadata(table.schema))


def read_parts(paths: Sequence[Path]) -> pa.Table:
    """Return the parts' rows, each with its decisions. Raise what `read_part` raises."""
    tables = [read_part(path) for path in paths]
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    return pa.concat_tables(tables, promote_options="permissive")


def episode_rows(parts: pa.Table) -> pa.Table:
    """Return the episodes of `read_parts`."""
    return conform(parts.drop_columns("decisions"), EPISODE_SCHEMA)


def decision_rows(parts: pa.Table) -> pa.Table:
    """Return the decisions of `read_parts`, one row each."""
    lists = parts["decisions"].combine_chunks()
    keys = parts.select(["run_id", "suite", "task_id", "trial"]).take(pc.list_parent_indices(lists))
    structs = lists.flatten()
    columns = dict(zip(keys.column_names, keys.columns, strict=True))
    columns |= {field.name: structs.field(index) for index, field in enumerate(structs.type)}
    return conform(pa.table(columns), DECISION_SCHEMA)


def _check_columns(schema: pa.Schema, path: Path) -> bool:
    """Return True if names and types are known to be as written, False if unknown. Raise ValueError if they are not."""
    known, version = read_metadata(schema).get(COLUMNS_CRC32), version_of(schema)
    # Nearly every part is of this version.
    if known == _CHECKSUM and version == SCHEMA_VERSION and schema.equals(PART_SCHEMA):
        return True
    if known is not None and known != checksum(schema):
        raise ValueError("its columns are damaged")
    check_version(version, str(path))
    if known is None and version != "1":
        raise ValueError("is no part of any version")
    return known is not None


def _conformed(table: pa.Table) -> pa.Table:
    if table.schema.equals(PART_SCHEMA):
        return table
    others = PART_SCHEMA.remove(PART_SCHEMA.get_field_index("decisions"))
    if "decisions" not in table.column_names:
        raise ColumnsError("column decisions is missing")
    rows = conform(table.drop_columns("decisions"), others)
    return rows.append_column(_DECISIONS.name, _conformed_decisions(table["decisions"].combine_chunks()))


def _conformed_decisions(lists: pa.Array) -> pa.Array:
    if not pa.types.is_list(lists.type) or not pa.types.is_struct(lists.type.value_type) or lists.null_count:
        raise ColumnsError(f"column decisions is {lists.type}")
    table = conform(pa.Table.from_struct_array(lists.flatten()), _DECISION_FIELDS)
    columns = [column.combine_chunks() for column in table.columns]
    offsets = pa.array([0, len(table)], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(table.schema)))


def _with_digests(row: pa.Table, data: bytes, metadata: Mapping[bytes, bytes]) -> pa.Table:
    digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)
    row = _with(row, "part_digest", digest)
    crc32 = metadata.get(TRAJECTORY_CRC32)  # schema 1
    return row if crc32 is None else _with(row, "trajectory_crc32", int(crc32))


def _with(row: pa.Table, name: str, value: int) -> pa.Table:
    index = row.schema.get_field_index(name)
    return row.set_column(index, row.schema.field(index), pa.array([value], row.schema.field(index).type))
