"""parts/ -> episodes.parquet and decisions.parquet, one part in memory at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA
from wpray.results.writer import RunFolder

_GROUP = 2000  # parts a row group


def merge(folder: RunFolder) -> None:
    """Writes both tables anew, in (suite, task, trial) order and with exactly one row a part, and replaces the old."""
    episodes_path, decisions_path = folder.path / "episodes.parquet", folder.path / "decisions.parquet"
    parts = folder.parts()
    with (
        _Replacing(episodes_path, EPISODE_SCHEMA) as episodes,
        _Replacing(decisions_path, DECISION_SCHEMA) as decisions,
    ):
        for start in range(0, len(parts), _GROUP):
            table = pa.concat_tables([pq.read_table(path) for path in parts[start : start + _GROUP]])
            episodes.write(table.select(EPISODE_SCHEMA.names).cast(EPISODE_SCHEMA))
            decisions.write(_decisions(table))


def _decisions(table: pa.Table) -> pa.Table:
    lists = table["decisions"].combine_chunks()
    rows = pc.list_parent_indices(lists)
    structs = lists.flatten()
    keys = table.select(["run_id", "suite", "task_id", "trial"]).take(rows)
    columns = [
        keys[field.name] if field.name in keys.column_names else structs.field(field.name) for field in DECISION_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=DECISION_SCHEMA)


class _Replacing:
    """A Parquet writer whose file appears under its name only once it is complete."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")

    def __enter__(self) -> _Replacing:
        return self

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
