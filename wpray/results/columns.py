"""Conversion of tables of every released schema: missing columns become null, unknown ones are kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import pyarrow as pa

from wpray.errors import NewerSchemaError
from wpray.results.schema import SCHEMA_VERSION, VERSION_KEY


class ColumnsError(ValueError):
    """Table without a column that every schema has, or with a column of another type."""


def check_version(version: object, name: str) -> None:
    """Raise NewerSchemaError if the file `name` has a newer major version. None is a file from before versions.

    Raise ColumnsError if `version` is not a version.
    """
    if version is None:
        return
    major = str(version).split(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise ColumnsError(f"its schema version is {str(version)[:20]!r}")
    if int(major[:9]) > int(SCHEMA_VERSION.split(".")[0]):
        raise NewerSchemaError(
            f"{name}: was written with results schema {version}, this wpray reads up to {SCHEMA_VERSION}; "
            "read it with the version of wpray that wrote it (its run.json names it), or a newer one"
        )


def version_of(schema: pa.Schema) -> str | None:
    """Return the version that a file's schema states; None if it states none."""
    version = (schema.metadata or {}).get(VERSION_KEY)
    return None if version is None else version.decode(errors="replace")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with the columns of `schema`, followed by unknown columns as they are.

    A missing nullable column becomes null. A type of the same kind (int64 for int32) is cast.
    Raise ColumnsError if another column is missing, a type differs, or a column that is never null holds nulls.
    """
    if table.schema.equals(schema):
        return table if table.schema.equals(schema, check_metadata=True) else table.cast(schema)
    known = [_column(table, field) for field in schema]
    more = [name for name in table.column_names if schema.get_field_index(name) < 0]
    fields = [*schema, *(table.schema.field(name).with_nullable(True) for name in more)]
    columns = [*known, *(table[name] for name in more)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=schema.metadata))


def checksum(schema: pa.Schema) -> bytes:
    """Return a CRC-32 of the version, names and types, because Parquet checks its pages but not its footer."""
    said = f"{version_of(schema)} {_described(schema)}"
    return str(zlib.crc32(said.encode())).encode()


def read_metadata(schema: pa.Schema) -> Mapping[bytes, bytes]:
    """Return a schema's metadata, empty if there is none."""
    return schema.metadata or {}


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    count = table.column_names.count(field.name)
    if count > 1:
        raise ColumnsError(f"column {field.name} is there {count} times")
    if count == 0:
        if not field.nullable:
            raise ColumnsError(f"column {field.name} is missing")
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = _cast(table[field.name], field)
    if column.null_count and not field.nullable:
        raise ColumnsError(f"column {field.name} lacks {column.null_count} of {table.num_rows} values")
    return column


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    if _kind(column.type) != _kind(field.type):
        raise ColumnsError(f"column {field.name} is {column.type}, not {field.type}")
    try:
        return column.cast(field.type)
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ColumnsError(f"column {field.name} is {column.type}, not {field.type} ({reason})") from error


_KINDS = {
    "whole number": pa.types.is_integer,
    "number": pa.types.is_floating,
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "instant": pa.types.is_timestamp,
    "map": pa.types.is_map,
    "list": lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind),
    "struct": pa.types.is_struct,
}


def _kind(kind: pa.DataType) -> object:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    return next((name for name, fits in _KINDS.items() if fits(kind)), kind)


def _described(fields: Iterable[pa.Field]) -> str:
    """Return names and types; list elements have no name, because pyarrow versions name them differently."""
    return ",".join(f"{field.name}:{_type(field.type)}" for field in fields)


def _type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return f"struct({_described(kind.field(index) for index in range(kind.num_fields))})"
    if pa.types.is_map(kind):
        return f"map({_type(kind.key_type)},{_type(kind.item_type)})"
    if pa.types.is_fixed_size_list(kind):
        return f"list({_type(kind.value_type)},{kind.list_size})"
    return f"list({_type(kind.value_type)})" if pa.types.is_list(kind) else str(kind)
