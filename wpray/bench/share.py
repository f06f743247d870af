"""`python -m wpray.bench share`: a policy's batches beside busy cores and processes that draw on its GPU.

The policy has random weights of full size and computes the same batch again and again: alone, beside processes that
keep a core busy each, beside processes that draw frames with EGL, and beside both, as environments in a run do. All
drawing processes together draw the given frames a second. Their scene holds as many triangles as one of LIBERO's, which
is what a frame of LIBERO costs.

The limit is what a run may cost its policy. The floor follows from the share of the time that the GPU draws: the frames
a second that were drawn, times what one takes on the GPU while nothing else runs there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from wpray.bench.figures import write_figures
from wpray.bench.policy_layouts import BenchSettings, MeasuredModels
from wpray.bench.policy_rates import samples
from wpray.cli.arguments import file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.system import gl, hardware

LIMIT = 1.3  # times as long in a run as alone, at most


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Processes beside the policy."""

    busy: int = 0
    drawing: int = 0

    def __str__(self) -> str:
        parts = [f"{self.busy} busy cores"] * bool(self.busy) + [f"{self.drawing} drawing"] * bool(self.drawing)
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True)
class SharedTime:
    """Time of a batch beside some neighbours, milliseconds."""

    neighbours: Neighbours
    median_ms: float
    p90_ms: float
    frames_per_s: float = 0.0  # of all drawing processes together
    frame_ms: float = 0.0  # of the GPU for one frame
    alone_ms: float = 0.0

    @property
    def ratio(self) -> float:
        """Median, in times of the one alone."""
        return self.median_ms / self.alone_ms

    @property
    def floor(self) -> float:
        """Least ratio that the frames leave; infinite if they take all of the GPU."""
        drawing = self.frames_per_s * self.frame_ms / 1e3
        return 1 / (1 - drawing) if drawing < 1 else float("inf")


class _Process:
    """A process of share_load.py that is ready."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "wpray.bench.share_load", *words]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(environ)
        )

    def ready(self) -> dict[str, float]:
        """Return what it says when it is ready. Raise BadInputError if it has failed."""
        assert self._process.stdout is not None
        return self._line(self._process.stdout.readline())

    def end(self) -> dict[str, float]:
        """Return what it has done since then."""
        out, _ = self._process.communicate("")
        return json.loads(out) if out else {}

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()

    def _line(self, line: str) -> dict[str, float]:
        if line:
            found: dict[str, float] = json.loads(line)
            return found
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines() or ["no message"]
        raise BadInputError(
            f"bench share: a process beside the policy ended at once ({lines[-1][:200]}); drawing needs MuJoCo and EGL "
            "(pip install wpray[libero], libegl1), and --drawing 0 measures without it"
        )


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return 1 if the limit is missed beside all neighbours at once, else 0."""
    args = _parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.variant == "full":
        raise BadInputError("bench share measures a GPU and finds none; run it on a machine with one")
    settings = BenchSettings(args.variant, args.precision, True, True, (args.batch,), device)
    call = MeasuredModels("two", settings).call(args.kind, args.batch)
    environ = _environ(args.renderer)
    alone = _measured(Neighbours(), call, args, environ)
    rows = [replace(alone, alone_ms=alone.median_ms)]
    for neighbours in _combinations(args):
        rows.append(replace(_measured(neighbours, call, args, environ), alone_ms=alone.median_ms))
    result = _result(args, device, rows)
    _print(result, rows)
    write_figures(args.json, result)
    return int(args.variant == "full" and rows[-1].ratio > LIMIT)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m wpray.bench share", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("segment", "plan"), default="segment", help="of request (default: segment)")
    parser.add_argument("--batch", type=whole(1, 256), default=12, help="requests of a batch (default: 12)")
    parser.add_argument("--calls", type=whole(1, 10_000), default=40, help="batches beside each (default: 40)")
    parser.add_argument(
        "--busy", type=whole(0, 1024), default=hardware.cores(), help="busy processes (default: one a core)"
    )
    parser.add_argument(
        "--drawing", type=whole(0, 1024), nargs="+", default=[1, 44], help="processes that draw (default: 1 44)"
    )
    parser.add_argument(
        "--frames", type=whole(1, 100_000), default=280, help="a second, of all of them (default: 280, as in a run)"
    )
    parser.add_argument("--faces", type=whole(1, 5_000_000), default=230_000, help="triangles of the scene")
    parser.add_argument("--size", type=whole(16, 640), default=256, help="pixels of a frame's side (default: 256)")
    parser.add_argument("--renderer", choices=("auto", "egl", "osmesa"), default="auto", help="as env.renderer")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--variant", choices=("full", "tiny"), default="full", help="tiny needs no GPU")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    return parser


def _environ(renderer: str) -> dict[str, str]:
    environ = dict(os.environ)
    gl.prepare(gl.resolve(renderer, environ), environ)
    return environ


def _combinations(args: argparse.Namespace) -> Iterator[Neighbours]:
    """Yield what stands beside the policy, the most last."""
    drawing = sorted({count for count in args.drawing if count})
    for busy in dict.fromkeys((0, args.busy)):
        if busy:
            yield Neighbours(busy)
        for count in drawing:
            yield Neighbours(busy, count)


def _measured(neighbours: Neighbours, call: Any, args: argparse.Namespace, environ: Mapping[str, str]) -> SharedTime:
    with _beside(neighbours, args, environ) as (processes, frame_ms):
        taken = 1e3 * np.array(samples(call, args.calls))
        drawn = [found for process in processes if (found := process.end())]
    rate = sum(found["frames"] / found["seconds"] for found in drawn)
    return SharedTime(neighbours, float(np.median(taken)), float(np.percentile(taken, 90)), rate, frame_ms)


@contextmanager
def _beside(
    neighbours: Neighbours, args: argparse.Namespace, environ: Mapping[str, str]
) -> Iterator[tuple[list[_Process], float]]:
    """Give the processes once all of them work, and the least milliseconds of a frame that one of them measured."""
    with ExitStack() as stack:
        words = ["draw", str(args.frames / max(1, neighbours.drawing)), str(args.faces), str(args.size)]

        def start(words: Sequence[str]) -> _Process:
            process = _Process(words, environ)
            stack.callback(process.kill)
            return process

        drawing = [start(words) for _ in range(neighbours.drawing)]
        frame_ms = [process.ready()["gpu_ms"] for process in drawing]
        busy = [start(["busy"]) for _ in range(neighbours.busy)]
        for process in busy:
            process.ready()
        yield [*drawing, *busy], min(frame_ms, default=0.0)


def _result(args: argparse.Namespace, device: torch.device, rows: list[SharedTime]) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "cores": hardware.cores(),
        "torch": torch.__version__,
        "kind": args.kind,
        "batch": args.batch,
        "faces": args.faces,
        "frames_per_s": args.frames,
        "limit": LIMIT,
        "rows": [{**asdict(row), "ratio": row.ratio, "floor": row.floor} for row in rows],
    }


def _print(result: dict[str, Any], rows: list[SharedTime]) -> None:
    title = f"{result['gpu'] or 'CPU'}, {result['cores']} cores: batches of {result['batch']} {result['kind']}s"
    table = Table(title=title, box=None)
    for name in (
        "beside",
        "median ms",
        "p90 ms",
        "ratio",
        "p90 ratio",
        "frames/s",
        "GPU ms a frame",
        "floor",
        f"limit {LIMIT}",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        drawn = (f"{row.frames_per_s:.0f}", f"{row.frame_ms:.2f}", f"{row.floor:.2f}")
        drawn = drawn if row.neighbours.drawing else ("-", "-", "-")
        verdict = "met" if row.ratio <= LIMIT else "MISSED"
        figures = (f"{row.median_ms:.1f}", f"{row.p90_ms:.1f}", f"{row.ratio:.2f}", f"{row.p90_ms / row.alone_ms:.2f}")
        table.add_row(str(row.neighbours), *figures, *drawn, verdict if row.neighbours != Neighbours() else "-")
    Console(width=130).print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
