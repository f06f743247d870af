"""`python -m wpray.bench policy`: plans and segments on this GPU, against what its memory and arithmetic allow.

The weights are random, of full size, and captured as in a run. A figure is the median over calls, from host arrays to
host arrays. The floor of a call is a sum over its phases (vision, prefix, decoding passes, flow passes). Each phase
takes the longer of streaming the weights once and multiplying, at the rates that this card has just reached.

`--layout joint` and `--layout block` measure that layout and, in the same run, the pair of files that it replaces.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from wpray.bench.figures import write_figures
from wpray.bench.policy_layouts import BenchSettings, MeasuredCall, MeasuredModels
from wpray.bench.policy_rates import DeviceRates, measure_rates, timed
from wpray.cli.arguments import file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.models.config import CheckpointLayout

_TARGETS: Mapping[tuple[CheckpointLayout, MeasuredCall], Mapping[int, float]] = {  # ms per request on an H100, by batch
    ("two", "plan"): {1: 125.0, 8: 22.0, 32: 10.0},
    ("two", "segment"): {1: 18.0, 8: 6.8, 32: 5.8},
    ("block", "plan"): {1: 25.0, 32: 6.0},
}
_CHEAPER = 0.15  # least saving of a joint model's plan with its first segment, as a share of the pair's time
_CHEAPER_AT = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures of one kind of call at one batch size, milliseconds."""

    layout: CheckpointLayout
    kind: MeasuredCall
    batch: int
    call_ms: float
    request_ms: float
    floor_ms: float  # per request
    target_ms: float | None  # per request
    pair_ms: float | None = None  # per request, of the two-file layout

    @property
    def saved(self) -> float | None:
        """Share of the pair's time that is saved."""
        return None if self.pair_ms is None else 1 - self.request_ms / self.pair_ms


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a target is missed, else 0. Raise BadInputError for full size without a GPU."""
    args = _parser().parse_args(argv)
    settings = _settings(args)
    rates = measure_rates(settings.precision, settings.device)
    rows: list[Measurement] = []
    memory: dict[str, float] = {}
    for layout in dict.fromkeys(("two", args.layout)):
        rows += _measured(layout, settings, rates, rows, args.calls)
        if settings.device.type == "cuda":
            memory[layout] = _free() / 1e9
    result = _result(args, settings, rates, memory, rows)
    _print(result, rows)
    write_figures(args.json, result)
    return int(any(row.target_ms is not None and row.request_ms > row.target_ms for row in rows))


def _free() -> int:
    """Free the GPU for the next layout, and return the most bytes that the last one took."""
    most = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return most


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.bench policy", description=__doc__)
    parser.add_argument(
        "--layout", choices=get_args(CheckpointLayout), default="two", help="of the checkpoints (default: two)"
    )
    parser.add_argument("--batch", type=whole(1, 256), nargs="+", default=[1, 8, 32])
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--variant", choices=("full", "tiny"), default="full", help="tiny needs no GPU")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in shapes that give the same bits, as batching.deterministic",
    )
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--calls", type=whole(1, 1000), default=10, help="of which the median is taken")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    return parser


def _settings(args: argparse.Namespace) -> BenchSettings:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.variant == "full":
        raise BadInputError("bench policy measures a GPU and finds none; run it on a machine with one")
    batches = tuple(sorted(set(args.batch), reverse=True))  # the largest first: the others' graphs fit into its memory
    return BenchSettings(args.variant, args.precision, not args.eager, args.deterministic, batches, device)


def _measured(
    layout: CheckpointLayout, settings: BenchSettings, rates: DeviceRates, before: Sequence[Measurement], calls: int
) -> list[Measurement]:
    """Return the figures of a layout; `before` holds those of the pair, if it was measured."""
    models, pair = MeasuredModels(layout, settings), {(row.kind, row.batch): row.request_ms for row in before}
    rows = []
    for kind in get_args(MeasuredCall):
        for batch in settings.batches:
            call_ms = 1e3 * timed(models.call(kind, batch), calls)
            floor_ms = 1e3 * models.floor_s(kind, batch, rates) / batch
            beside = pair.get((kind, batch))
            target = _target(layout, kind, batch, settings, beside)
            rows.append(Measurement(layout, kind, batch, call_ms, call_ms / batch, floor_ms, target, beside))
    return rows


def _target(
    layout: CheckpointLayout, kind: MeasuredCall, batch: int, settings: BenchSettings, pair_ms: float | None
) -> float | None:
    if settings.variant != "full" or settings.precision != "bfloat16":
        return None
    if layout == "joint" and kind == "plan + segment" and batch in _CHEAPER_AT and pair_ms is not None:
        return (1 - _CHEAPER) * pair_ms
    return _TARGETS.get((layout, kind), {}).get(batch)


def _result(
    args: argparse.Namespace,
    settings: BenchSettings,
    rates: DeviceRates,
    memory: dict[str, float],
    rows: list[Measurement],
) -> dict[str, Any]:
    cuda = settings.device.type == "cuda"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "torch": torch.__version__,
        "layout": args.layout,
        "variant": settings.variant,
        "precision": settings.precision,
        "graphs": settings.graphs and cuda,
        "deterministic": settings.deterministic,
        "read_tb_per_s": rates.bytes_per_s / 1e12,
        "matrix_tflops": rates.flops / 1e12,
        "peak_memory_gb": memory,  # by layout, graphs and batches included
        "rows": [asdict(row) for row in rows],
    }


def _print(result: dict[str, Any], rows: list[Measurement]) -> None:
    memory = "".join(f"; {layout}: {peak:.1f} GB at most" for layout, peak in result["peak_memory_gb"].items())
    title = (
        f"{result['gpu'] or 'CPU'}, {result['precision']}: reads {result['read_tb_per_s']:.2f} TB/s, multiplies "
        f"{result['matrix_tflops']:.3g} TFLOP/s{memory}"
    )
    table = Table(title=title, box=None)
    columns = ("layout", "call", "batch", "ms a call", "ms a request", "floor", "floor / measured", "to two", "target")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        share, saved = f"{row.floor_ms / row.request_ms:.0%}", "-" if row.saved is None else f"{-row.saved:+.1%}"
        figures = (f"{row.call_ms:.1f}", f"{row.request_ms:.2f}", f"{row.floor_ms:.2f}")
        table.add_row(row.layout, row.kind, str(row.batch), *figures, share, saved, _verdict(row))
    Console(width=130).print(table)


def _verdict(row: Measurement) -> str:
    if row.target_ms is None:
        return "-"
    return f"{row.target_ms:.4g} {'met' if row.request_ms <= row.target_ms else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
