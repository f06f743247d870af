"""`python -m wpray.models.synthetic OUT`: random checkpoints in the real layout, with all files that a run needs.

OUT/vlm and OUT/ae, or OUT/joint, hold the weights, OUT/tokenizer.model a small sentencepiece tokenizer,
OUT/dataset_statistics.json plausible ranges, OUT/config.yaml a configuration that names them:
`python -m wpray.launch --config OUT/config.yaml`.
Random weights solve no task, but they cost the same time and memory as trained ones.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import sentencepiece

from wpray.cli.arguments import folder_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.models.config import (
    ActionExpertConfig,
    BlockPlannerConfig,
    CheckpointLayout,
    ModelVariant,
    Precision,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.models.random_weights import write_random
from wpray.models.token_layout import BINS256, BINS300

_USUAL_DURATIONS = range(8, 25)  # control steps, as in plans of trained policies
# Rows of the embedding table that score 0 and never win, for durations that no trained policy plans. A run then costs
# as much as a real one; with durations of zero, it would plan after every step.
_UNUSUAL = {
    tokens: [own for steps, own in enumerate(tokens.durations.ids) if steps not in _USUAL_DURATIONS]
    for tokens in (BINS256, BINS300)
}
_NUM_WAYPOINTS = 7
INSTRUCTIONS = (
    "pick up the alphabet soup and place it in the basket",
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "open the middle drawer of the cabinet",
    "put both the cream cheese box and the butter in the basket",
    "turn on the stove and put the moka pot on it",
    "put the yellow and white mug in the microwave and close it",
    "push the plate to the front of the stove",
    "put the wine bottle on top of the cabinet and the book in the back compartment of the caddy",
)
_PROPRIO = {  # ranges of an arm over a table: eef position (m), axis-angle (rad), finger joints (m)
    "q01": [-0.4, -0.3, 0.03, 2.7, -0.6, -0.5, 0.0, -0.04],
    "q99": [0.15, 0.28, 0.5, 3.4, 0.7, 0.5, 0.04, 0.0],
}
_ACTION = {
    "q01": [-0.75, -0.8, -0.9, -0.12, -0.18, -0.3, -1.0],
    "q99": [0.9, 0.85, 0.93, 0.17, 0.15, 0.33, 1.0],
}


def main(argv: Sequence[str]) -> int:
    """Write everything to a folder. Raise BadInputError if it cannot be written."""
    parser = ArgumentParser(prog="python -m wpray.models.synthetic", description=__doc__)
    parser.add_argument("out", type=folder_to_write, metavar="OUT")
    parser.add_argument(
        "--layout",
        choices=("two", "joint", "block"),
        default="two",
        help="a pair of files; one file with the newer tokens; one with a block planner",
    )
    parser.add_argument("--variant", choices=("tiny", "full"), default="tiny", help="full: 13 GB in bfloat16")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the files")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)
    args = parser.parse_args(argv)
    try:
        write(args.out, args.variant, args.precision, args.seed, args.layout)
    except OSError as error:
        raise BadInputError(f"{args.out}: cannot be written ({error.strerror}); choose another folder") from error
    print(f"python -m wpray.launch --config {args.out / 'config.yaml'}")
    return 0


def write(
    out: Path, variant: ModelVariant, precision: Precision, seed: int = 0, layout: CheckpointLayout = "two"
) -> None:
    """Write checkpoints, tokenizer, statistics and configuration to `out`."""
    vlm, expert = (
        (VlmConfig.tiny(), ActionExpertConfig.tiny())
        if variant == "tiny"
        else (VlmConfig.full(), ActionExpertConfig.full())
    )
    if layout == "two":
        write_random(vlm_manifest(vlm, precision), seed, out / "vlm", {"paligemma.lm_head.weight": _UNUSUAL[BINS256]})
        write_random(action_expert_manifest(expert, precision), seed, out / "ae")
    else:
        planner = BlockPlannerConfig(BINS300.tokens_per_waypoint, _NUM_WAYPOINTS) if layout == "block" else None
        expert = replace(expert, duration_embed=True, planner=planner)
        head = "paligemma_with_expert.paligemma.lm_head.weight"
        write_random(action_expert_manifest(expert, precision), seed, out / "joint", {head: _UNUSUAL[BINS300]})
    (out / "tokenizer.model").write_bytes(_tokenizer())
    (out / "dataset_statistics.json").write_text(json.dumps({**statistics(layout), "num_samples": 0}, indent=1) + "\n")
    (out / "config.yaml").write_text(_config(out, variant, precision, layout))


def _tokenizer() -> bytes:
    """Return a small sentencepiece model that falls back to bytes for unknown text."""
    model = io.BytesIO()
    states = [f"State: {' '.join(str((17 * row + 31 * dim) % 256) for dim in range(8))};" for row in range(256)]
    prompts = [f"Task: {text}, {states[row]}" for row, text in enumerate(INSTRUCTIONS)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*prompts, *states, "Action: "]),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def statistics(layout: CheckpointLayout = "two") -> dict[str, dict[str, list[float]]]:
    """Return plausible statistics of actions and proprio."""
    dims = (BINS256 if layout == "two" else BINS300).proprio_dim
    proprio = {name: values[:dims] for name, values in _PROPRIO.items()}
    return {"action": _complete(_ACTION), "proprio": _complete(proprio)}


def _complete(ranges: dict[str, list[float]]) -> dict[str, list[float]]:
    low, high = np.array(ranges["q01"]), np.array(ranges["q99"])
    mean, std = ((low + high) / 2).tolist(), ((high - low) / 4).tolist()
    return {"mean": mean, "std": std, **ranges, "min": ranges["q01"], "max": ranges["q99"]}


def _config(out: Path, variant: ModelVariant, precision: Precision, layout: CheckpointLayout) -> str:
    suffix = {"tiny": ("tiny_2b", "tiny_300m"), "full": ("gemma_2b", "gemma_300m")}[variant]
    names = {"vlm_checkpoint": out / "vlm", "ae_checkpoint": out / "ae"}
    entries = {
        **(names if layout == "two" else {"joint_checkpoint": out / "joint"}),
        "dataset_statistics_path": out / "dataset_statistics.json",
        "paligemma_variant": suffix[0],
        "action_expert_variant": suffix[1],
        "precision": precision,
        "vlm_precision": precision,
    }
    lines = [f"{name}: {json.dumps(str(value))}" for name, value in entries.items()]
    return "\n".join(["# Random weights: they solve nothing, but cost what trained ones do.", *lines, ""])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
