"""`python -m wpray.bench policy`: plans and segments on this GPU, against what its memory and arithmetic allow.

The weights are random, of full size, and captured as in a run. A figure is the median over calls, from host arrays to
host arrays. The floor of a call is a sum over its phases (vision, prefix, decoding passes, flow passes). Each phase
takes the longer of streaming the weights once and multiplying, at the rates that this card has just reached.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from wpray.bench.figures import write_figures
from wpray.cli.arguments import file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.configuration import ArgumentParser
from wpray.config import BatchingConfig
from wpray.errors import BadInputError
from wpray.models import loading
from wpray.models.action_expert import NUM_STEPS, PROMPT_SIZES
from wpray.models.checkpoint import TABLES
from wpray.models.config import (
    IMAGE_TOKENS,
    ActionExpertConfig,
    GemmaConfig,
    Manifest,
    Precision,
    SiglipConfig,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.models.loading import Computing
from wpray.models.staging import fetch
from wpray.models.token_layout import BINS256
from wpray.policies.waypoint_vla.batch_shapes import PLAN, SEGMENT, BatchShapes, RequestKind, TraceOf, fixed_shapes

_HEADER = (4022, 235292, 235248)
_PROMPT, _SHORT_PROMPT = 56, 20  # tokens of a LIBERO prompt, for the VLM and the action expert
_PASSES, _SUFFIX = 62, 34
_TARGETS = {"plan": {1: 125.0, 8: 22.0, 32: 10.0}, "segment": {1: 18.0, 8: 6.8, 32: 5.8}}  # ms per request


@dataclass(frozen=True, slots=True)
class Rates:
    """Best rates of the card, as measured here."""

    bytes_per_s: float  # memory reads
    flops: float  # matrix products in the compute precision


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one kind of call at one batch size, milliseconds."""

    kind: str
    batch: int
    call_ms: float
    request_ms: float
    floor_ms: float  # per request
    target_ms: float | None  # per request


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a target is missed, else 0. Raise BadInputError without a GPU."""
    parser = ArgumentParser(prog="python -m wpray.bench policy", description=__doc__)
    parser.add_argument("--batch", type=whole(1, 256), nargs="+", default=[1, 8, 32])
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--variant", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=BatchingConfig().deterministic,
        help="in shapes that give the same bits, as batching.deterministic",
    )
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise BadInputError("bench policy measures a GPU and finds none; run it on a machine with one")
    rates = measure_rates(args.precision)
    rows = _plans(args, rates)
    torch.cuda.empty_cache()
    rows += _segments(args, rates)
    result = _result(args, rates, rows)
    _print(result, rows)
    write_figures(args.json, result)
    return int(any(row.target_ms is not None and row.request_ms > row.target_ms for row in rows))


def random_weights(manifest: Manifest, precision: Precision) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the tensors of a manifest on the GPU, and the embedding table on the host.

    They are in compute precision, and scaled so that activations keep their size.
    """
    torch.manual_seed(0)
    weights = {}
    for name, (shape, dtype) in manifest.items():
        kind = getattr(torch, dtype) if precision == "bfloat16" else torch.float32
        gain = 0.01 if "lm_head" in name else float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.02
        weights[name] = (torch.randn(shape, device="cuda") * gain).to(kind)
    (table,) = TABLES & manifest.keys()
    return weights, weights.pop(table).cpu()


def measure_rates(precision: Precision) -> Rates:
    """Return the best read bandwidth and matrix rate of a few attempts."""
    kind = getattr(torch, precision)
    big = torch.empty(2**31, dtype=torch.uint8, device="cuda").view(torch.int64)
    read_s = min(timed(lambda: big.sum()) for _ in range(3))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=kind) for _ in range(2))
    product_s = min(timed(lambda: a @ b) for _ in range(3))
    return Rates(big.numel() * 8 / read_s, 2 * 8192**3 / product_s)


def timed(function: Callable[[], Any], calls: int = 10) -> float:
    """Return the median seconds per call, including the GPU's work."""
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _plans(args: argparse.Namespace, rates: Rates) -> list[Row]:
    config = VlmConfig.full() if args.variant == "full" else VlmConfig.tiny()
    weights = random_weights(vlm_manifest(config, "bfloat16"), args.precision)
    model = loading.vlm(*weights, config, BINS256, _HEADER, _computing(args))
    shapes = _shapes(args, PLAN, model.trace)
    size = 4 if args.precision == "float32" else 2

    def run(batch: int) -> Callable[[], Any]:
        images, prompts = _images(batch), [list(range(2, 2 + _PROMPT))] * batch
        parts = [
            (images[rows], prompts[: len(rows)], shape)
            for rows, shape in shapes.cut([model.prompt_size(_PROMPT)] * batch)
        ]
        return lambda: [fetch(model.plan(seen, asked, shape=shape).durations) for seen, asked, shape in parts]

    def floor(batch: int) -> float:
        prefix = _gemma_floor(config.text, batch * (2 * IMAGE_TOKENS + _PROMPT + len(_HEADER) + 1), size, rates)
        passes = _PASSES * _gemma_floor(config.text, batch, size, rates)
        return _vision_floor(config.vision, batch, size, rates) + prefix + passes

    return [_row("plan", batch, args, run(batch), floor(batch)) for batch in sorted(args.batch, reverse=True)]


def _segments(args: argparse.Namespace, rates: Rates) -> list[Row]:
    config = ActionExpertConfig.full() if args.variant == "full" else ActionExpertConfig.tiny()
    weights = random_weights(action_expert_manifest(config, "bfloat16"), args.precision)
    model = loading.action_expert(*weights, config, _computing(args))
    shapes = _shapes(args, SEGMENT, model.trace)
    size = 4 if args.precision == "float32" else 2

    def run(batch: int) -> Callable[[], Any]:
        images, prompts = _images(batch), [list(range(2, 2 + _SHORT_PROMPT))] * batch
        start, end = torch.rand(2, batch, config.action_dim)
        duration, noise = torch.full((batch,), 16), torch.randn(batch, config.horizon, config.action_dim)
        parts = [
            (images[rows], prompts[: len(rows)], start[rows], end[rows], duration[rows], noise[rows], shape)
            for rows, shape in shapes.cut([PROMPT_SIZES[0]] * batch)
        ]
        return lambda: [fetch(model.act(*part)) for part in parts]

    def floor(batch: int) -> float:
        prefix = _gemma_floor(config.text, batch * (2 * IMAGE_TOKENS + _SHORT_PROMPT), size, rates)
        passes = NUM_STEPS * _gemma_floor(config.expert, batch * _SUFFIX, size, rates)
        return _vision_floor(config.vision, batch, size, rates) + prefix + passes

    return [_row("segment", batch, args, run(batch), floor(batch)) for batch in sorted(args.batch, reverse=True)]


def _computing(args: argparse.Namespace) -> Computing:
    return Computing(args.precision, args.precision, "float32", graphs=not args.eager, device=torch.device("cuda"))


def _shapes(args: argparse.Namespace, kind: RequestKind, trace: TraceOf) -> BatchShapes:
    """Return the batch shapes that a run would use."""
    most = max(args.batch)
    if not args.deterministic:
        return BatchShapes(kind.up_to(most))
    return fixed_shapes(kind, trace, args.precision, most)


def _images(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 2, 224, 224, 3), dtype=torch.uint8).pin_memory()


def _row(kind: str, batch: int, args: argparse.Namespace, call: Callable[[], Any], floor_s: float) -> Row:
    seconds = timed(call)
    target = _TARGETS[kind].get(batch) if args.variant == "full" and args.precision == "bfloat16" else None
    return Row(kind, batch, 1e3 * seconds, 1e3 * seconds / batch, 1e3 * floor_s / batch, target)


def _gemma_floor(config: GemmaConfig, tokens: int, size: int, rates: Rates) -> float:
    """Return the least seconds of one pass over `tokens` tokens; attention and norms are left out."""
    inner = config.heads * config.head_dim
    layer = config.width * (2 * inner + 2 * config.head_dim) + 3 * config.width * config.mlp
    return _floor(config.depth * layer, tokens, size, rates)


def _vision_floor(config: SiglipConfig, batch: int, size: int, rates: Rates) -> float:
    layer = 4 * config.width**2 + 2 * config.width * config.mlp
    return _floor(config.depth * layer, 2 * IMAGE_TOKENS * batch, size, rates)


def _floor(weights: int, tokens: int, size: int, rates: Rates) -> float:
    return max(weights * size / rates.bytes_per_s, 2 * weights * tokens / rates.flops)


def _result(args: argparse.Namespace, rates: Rates, rows: list[Row]) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "precision": args.precision,
        "graphs": not args.eager,
        "deterministic": args.deterministic,
        "read_tb_per_s": rates.bytes_per_s / 1e12,
        "matrix_tflops": rates.flops / 1e12,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "rows": [asdict(row) for row in rows],
    }


def _print(result: dict[str, Any], rows: list[Row]) -> None:
    title = (
        f"{result['gpu']}, {result['precision']}: reads {result['read_tb_per_s']:.2f} TB/s, multiplies "
        f"{result['matrix_tflops']:.0f} TFLOP/s, at most {result['peak_memory_gb']:.1f} GB for one model"
    )
    table = Table(title=title, box=None)
    for name in ("call", "batch", "ms a call", "ms a request", "floor", "floor / measured", "target"):
        table.add_column(name, justify="right")
    for row in rows:
        target = (
            "-"
            if row.target_ms is None
            else f"{row.target_ms:g} {'met' if row.request_ms <= row.target_ms else 'MISSED'}"
        )
        share = f"{row.floor_ms / row.request_ms:.0%}"
        figures = (f"{row.call_ms:.1f}", f"{row.request_ms:.2f}", f"{row.floor_ms:.2f}")
        table.add_row(row.kind, str(row.batch), *figures, share, target)
    Console(width=130).print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
