"""`python -m wpray.soup CHECKPOINT CHECKPOINT ... -o DIR`: the weighted average of checkpoints of one layout.

DIR/model.safetensors has the names and dtypes of the first checkpoint. Its header's metadata name every source with its
SHA-256 and weight. metadata.pt of the first checkpoint is copied.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wpray import __version__
from wpray.cli.arguments import folder_to_write, number
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.provenance.record import file_sha256

_FILE, _METADATA = "model.safetensors", "metadata.pt"
_ROUNDING = 1e-6  # rounding error of a sum of weights that are typed


def main(argv: Sequence[str]) -> int:
    """Write the average. Raise BadInputError if the checkpoints, the weights or the folder cannot be used."""
    args = _parser().parse_args(list(argv))
    weights = _weights(args.weights, len(args.checkpoints))
    target = args.output / _FILE
    if target.exists():
        raise BadInputError(f"-o {args.output}: holds {_FILE} already; name another folder")
    from wpray.models.averaging import open_alike

    opened = open_alike(args.checkpoints, args.checkpoint_file)
    sources = [
        {"path": str(one.path), "weight": weight, "sha256": {file.name: file_sha256(file) for file in one.files}}
        for one, weight in zip(opened, weights, strict=True)
    ]
    try:
        _write(opened, weights, args.output, {"wpray": __version__, "sources": sources})
    except OSError as error:
        raise BadInputError(f"-o {args.output}: cannot be written ({error.strerror}); choose another") from error
    for source in sources:
        print(f"{source['weight']:g}  {source['path']}")
    print(f"written: {target}")
    return 0


def _write(opened: Sequence[Any], weights: Sequence[float], folder: Path, provenance: dict[str, Any]) -> None:
    """Write the files of the average, the weights last: a folder that holds them is whole."""
    from wpray.models.averaging import average

    folder.mkdir(parents=True, exist_ok=True)
    beside, unfinished = opened[0].path.with_name(_METADATA), folder / f".{_FILE}.part"
    try:
        average(opened, weights, unfinished, provenance)
        if beside.is_file():
            shutil.copyfile(beside, folder / _METADATA)
        unfinished.replace(folder / _FILE)
    finally:
        unfinished.unlink(missing_ok=True)


def _weights(given: Sequence[float] | None, count: int) -> list[float]:
    if count < 2:
        raise BadInputError("an average needs two checkpoints or more")
    if given is None:
        return [1 / count] * count
    if len(given) != count:
        raise BadInputError(f"--weights: {len(given)} are given for {count} checkpoints; give one for each")
    if abs(math.fsum(given) - 1) > _ROUNDING:
        raise BadInputError(f"--weights: they sum to {math.fsum(given):g}; give weights that sum to 1")
    return list(given)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m wpray.soup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="files, or directories of one")
    parser.add_argument("-o", "--output", required=True, type=folder_to_write, metavar="DIR", help="a new folder")
    parser.add_argument(
        "-w", "--weights", nargs="+", type=number(0, 1), metavar="W", help="one for each, summing to 1; default: equal"
    )
    parser.add_argument(
        "--checkpoint_file",
        choices=("model", "model_merged"),
        default="model",
        help="which .safetensors file of a directory counts if both are there",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
