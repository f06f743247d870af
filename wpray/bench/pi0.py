"""`python -m wpray.bench pi0`: requests a second of `policy: pi0`, beside calling Transformers directly.

Both compute the same requests on the same device, in the same precision, from images in host memory to actions there.
The library is called as its documentation shows: one batch, padded to its longest instruction, without graphs. A figure
is the median over calls. Without `--checkpoint`, random weights are written to a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from wpray.bench.figures import write_figures
from wpray.bench.policy_rates import timed
from wpray.cli.arguments import expanded_path, file_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.config import Config
from wpray.config.groups import BatchingConfig
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy
from wpray.policies.pi0 import synthetic
from wpray.policies.pi0.model import load_model
from wpray.policies.pi0.policy import Pi0Policy, open_checkpoint
from wpray.policies.pi0.preparation import ReadyChunk
from wpray.policies.pi0.spec import settings_of
from wpray.testing.policy_requests import first_requests
from wpray.types import ChunkRequest


@dataclass(frozen=True, slots=True)
class Pi0Measurement:
    """Figures of one batch size."""

    batch: int
    rows: int  # of the shape in which wpray computes it, or its first part
    direct_ms: float  # a call
    policy_ms: float
    direct_per_s: float  # requests
    policy_per_s: float
    ratio: float  # of requests a second, wpray's to the library's


def main(argv: Sequence[str]) -> int:
    """Run the benchmark. Raise BadInputError for full size without a GPU, or a wrong checkpoint."""
    args = _parser().parse_args(argv)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and args.variant == "full":
        raise BadInputError("bench pi0 measures a GPU and finds none; run it on a machine with one")
    with tempfile.TemporaryDirectory() as folder:
        if args.checkpoint is None:
            synthetic.write(Path(folder), args.variant, args.precision)
        config = _config(args, args.checkpoint or Path(folder))
        rows = measure(config, sorted(set(args.batch), reverse=True), args.calls)
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "precision": args.precision,
        "graphs": on_gpu and not args.eager,
        "deterministic": args.deterministic,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,  # of both together
        "rows": [asdict(row) for row in rows],
    }
    _print(result, rows)
    write_figures(args.json, result)
    return 0


def measure(config: Config, batches: Sequence[int], calls: int) -> list[Pi0Measurement]:
    """Return the figures of each batch size, in order."""
    policy = build_policy(config)
    assert isinstance(policy, Pi0Policy)
    library, rows = DirectCaller(config), []
    found = cast(Sequence[ChunkRequest], first_requests(policy.spec, ("fake", "auto"), max(batches), seed=0))
    requests = [policy.prepare(request) for request in found]
    for batch in batches:
        policy_s = timed(partial(policy.predict, requests[:batch]), calls)
        direct_s = timed(partial(library, requests[:batch]), calls)
        per_s = batch / direct_s, batch / policy_s
        rows.append(
            Pi0Measurement(batch, policy.rows_of(batch), 1e3 * direct_s, 1e3 * policy_s, *per_s, direct_s / policy_s)
        )
    return rows


class DirectCaller:
    """Caller of Transformers' model without wpray's batches and graphs."""

    def __init__(self, config: Config) -> None:
        """Load the checkpoint of `config` once more."""
        settings, opened = settings_of(config), open_checkpoint(config)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(opened.files.folder, opened.sizes, settings.precision, self._device)
        self._cameras, self._steps = settings.cameras, settings.num_inference_steps
        vision = opened.sizes.vlm_config.vision_config
        self._image_tokens = len(settings.cameras) * (vision.image_size // vision.patch_size) ** 2
        self._image_token = opened.sizes.vlm_config.image_token_id

    def __call__(self, requests: Sequence[ReadyChunk]) -> Any:
        """Return normalized chunks (B, H, A)."""
        images = np.stack([[own.observation.images[role] for role in self._cameras] for own in requests])
        longest = max(len(own.prompt) for own in requests)
        padding = [longest - len(own.prompt) for own in requests]
        head = [self._image_token] * self._image_tokens
        tokens = [[*head, *own.prompt, *[0] * missing] for own, missing in zip(requests, padding, strict=True)]
        mask = [[1] * (len(row) - missing) + [0] * missing for row, missing in zip(tokens, padding, strict=True)]
        pixels = torch.from_numpy(images).to(self._device).permute(0, 1, 4, 2, 3).float()
        kind = self._model.dtype
        chunks = self._model.sample_actions(
            state=self._moved(np.stack([own.state for own in requests])).to(kind),
            input_ids=self._moved(np.array(tokens)),
            pixel_values=((pixels - 127.5) / 127.5).to(kind),
            noise=self._moved(np.stack([own.noise for own in requests])).to(kind),
            attention_mask=self._moved(np.array(mask)),
            pixel_attention_mask=torch.ones(images.shape[:2], dtype=torch.bool, device=self._device),
            num_steps=self._steps,
        )
        return chunks.float().cpu().numpy()

    def _moved(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m wpray.bench pi0", description=__doc__)
    parser.add_argument("--checkpoint", type=expanded_path, help="folder of a checkpoint (default: random weights)")
    parser.add_argument("--variant", choices=("full", "tiny"), default="full", help="of random weights; tiny: no GPU")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=whole(1, 256), nargs="+", default=[1, 8, 32])
    parser.add_argument("--calls", type=whole(1, 1000), default=10, help="of which the median is taken")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--json", type=file_to_write, help="also write the figures to this file")
    return parser


def _config(args: argparse.Namespace, checkpoint: Path) -> Config:
    return Config(
        policy="pi0",
        task_suite="fake",
        torch_compile=not args.eager,
        batching=BatchingConfig(max_batch_size=max(args.batch), deterministic=args.deterministic),
        policy_args={"checkpoint": str(checkpoint), "precision": args.precision},
    )


def _print(result: dict[str, Any], rows: Sequence[Pi0Measurement]) -> None:
    kind = "CUDA graphs" if result["graphs"] else "eager"
    table = Table(title=f"{result['gpu'] or 'CPU'}, {result['precision']}, {kind}", box=None)
    for name in (
        "batch",
        "rows",
        "library, ms a call",
        "wpray, ms a call",
        "library, requests/s",
        "wpray, requests/s",
        "ratio",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        times = (f"{row.direct_ms:.1f}", f"{row.policy_ms:.1f}", f"{row.direct_per_s:.1f}", f"{row.policy_per_s:.1f}")
        table.add_row(str(row.batch), str(row.rows), *times, f"{row.ratio:.2f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
