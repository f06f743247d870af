"""Tables of a sweep: rates of every checkpoint, and paired tests of every two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wpray.results.atomic import write_atomic
from wpray.results.statistics import Rate
from wpray.sweep.outcomes import Evaluated, SweepComparison

RATES, PAIRS = "sweep.parquet", "pairs.parquet"
_RATE_FIELDS = [
    ("checkpoint", pa.string()),  # folder of its run, under runs/
    ("number", pa.int32()),  # place in the order of the sweep
    ("step", pa.int64()),  # of training, null if its path has no number
    ("run_id", pa.string()),
    ("state", pa.string()),  # of its run
    ("held_out", pa.bool_()),  # trials of a race's winner that have not chosen it: a run of their own
    ("suite", pa.string()),  # null: all suites
    ("task_id", pa.int32()),  # null: the whole suite
    ("instruction", pa.string()),
    ("successes", pa.int64()),
    ("trials", pa.int64()),  # with an outcome
    ("errors", pa.int64()),
    ("rate", pa.float64()),  # null without a trial
    ("low", pa.float64()),  # of the 95% interval
    ("high", pa.float64()),
]
_PAIR_FIELDS = [
    ("a", pa.string()),
    ("b", pa.string()),
    ("both", pa.int64()),
    ("only_a", pa.int64()),
    ("only_b", pa.int64()),
    ("neither", pa.int64()),
    ("difference", pa.float64()),  # rate of B less that of A, on the trials of both
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("p", pa.float64()),  # exact McNemar test
    ("p_holm", pa.float64()),  # adjusted for the number of pairs
]


def write_tables(folder: Path, found: Sequence[Evaluated], comparisons: Sequence[SweepComparison]) -> None:
    """Write both tables."""
    settings = list(dict.fromkeys(name for one in found for name in one.paths))
    fields = [*_RATE_FIELDS, *((name, pa.string()) for name in settings)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(one.name for one in found))}
    rows = [{**row, **one.paths} for one in found for row in _rates(numbers[one.name], one)]
    _write(folder / RATES, pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    _write(folder / PAIRS, pa.Table.from_pylist([_pair(one) for one in comparisons], schema=pa.schema(_PAIR_FIELDS)))


def _write(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def _rates(number: int, one: Evaluated) -> Iterator[dict[str, Any]]:
    ids = {"run_id": str(one.run.info.get("run_id")), "state": one.state, "held_out": one.held_out}
    about = {"checkpoint": one.name, "number": number, "step": one.step, **ids}
    yield {**about, "errors": one.errors, **_numbers(one.rate)}
    for suite, tasks in one.suites.items():
        errors = sum(task.errors for task in tasks)
        yield {**about, "suite": suite, "errors": errors, **_numbers(one.suite_rate(suite))}
        for task in tasks:
            named = {"suite": suite, "task_id": task.task_id, "instruction": task.instruction, "errors": task.errors}
            yield {**about, **named, **_numbers(task.rate)}


def _numbers(rate: Rate) -> dict[str, Any]:
    counts = {"successes": rate.successes, "trials": rate.trials}
    return counts if math.isnan(rate.rate) else {**counts, "rate": rate.rate, "low": rate.low, "high": rate.high}


def _pair(one: SweepComparison) -> dict[str, Any]:
    pairs, (low, high) = one.pairs, one.interval
    counts = {name: getattr(pairs, name) for name in ("both", "only_a", "only_b", "neither", "difference")}
    return {"a": one.a.name, "b": one.b.name, **counts, "low": low, "high": high, "p": one.p, "p_holm": one.adjusted}
