"""`python -m wpray.policies.pi0.synthetic OUT`: a random pi0 checkpoint in Transformers' format.

OUT holds the weights, a small tokenizer, statistics, and a configuration that runs them:
`python -m wpray.launch --config OUT/config.yaml`.
Random weights solve no task, but they cost the same time and memory as trained ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PI0Config

from wpray.cli.arguments import folder_to_write, whole
from wpray.cli.command import run_command
from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.models.config import Precision
from wpray.models.random_weights import write_random
from wpray.models.synthetic import INSTRUCTIONS, statistics
from wpray.policies.pi0.model import expected_shapes
from wpray.types import POLICY_IMAGE_SIZE

Variant = Literal["tiny", "full"]
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # with the ids that PaliGemma's have
_TOKENS = 700


def main(argv: Sequence[str]) -> int:
    """Write everything to a folder. Raise BadInputError if it cannot be written."""
    parser = ArgumentParser(prog="python -m wpray.policies.pi0.synthetic", description=__doc__)
    parser.add_argument("out", type=folder_to_write, metavar="OUT")
    parser.add_argument("--variant", choices=("tiny", "full"), default="tiny", help="full: 7 GB in bfloat16")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the files")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)
    args = parser.parse_args(argv)
    try:
        write(args.out, args.variant, args.precision, args.seed)
    except OSError as error:
        raise BadInputError(f"{args.out}: cannot be written ({error.strerror}); choose another folder") from error
    print(f"python -m wpray.launch --config {args.out / 'config.yaml'}")
    return 0


def write(out: Path, variant: Variant, precision: Precision, seed: int = 0) -> None:
    """Write a checkpoint with its processor, tokenizer and configuration to `out`. Raise OSError if that fails."""
    config = PI0Config() if variant == "full" else tiny_config()
    config.architectures = ["PI0ForConditionalGeneration"]
    write_random({name: (shape, precision) for name, shape in expected_shapes(config).items()}, seed, out)
    (out / "config.json").write_text(config.to_json_string())
    (out / "processor_config.json").write_text(json.dumps(_processor(config), indent=1) + "\n")
    _tokenizer().save(str(out / "tokenizer.json"))
    args = {"checkpoint": str(out), "precision": precision}
    (out / "config.yaml").write_text(f"policy: pi0\npolicy_args: {json.dumps(args)}\n")


def tiny_config() -> PI0Config:
    """Return the configuration of a model that a CPU computes in a moment."""
    attention = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2}
    text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, "vocab_size": 1024, **attention}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 56,
        "image_size": POLICY_IMAGE_SIZE,
        "vision_use_head": False,
    }
    vlm = {"model_type": "paligemma", "projection_dim": 32, "image_token_id": 1024}
    return PI0Config(
        vlm_config={**vlm, "text_config": text, "vision_config": vision},
        dit_config={"model_type": "gemma", "hidden_size": 16, "intermediate_size": 32, **attention},
        chunk_size=8,
        num_inference_steps=3,
    )


def _processor(config: PI0Config) -> dict[str, Any]:
    """Return what PI0Processor saves of itself."""
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "PI0ImageProcessor",
        "image_seq_length": 256,
        "image_std": [0.5] * 3,
        "pad_size": {"height": POLICY_IMAGE_SIZE, "width": POLICY_IMAGE_SIZE},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"max_height": POLICY_IMAGE_SIZE, "max_width": POLICY_IMAGE_SIZE},
    }
    numbers = statistics()
    scaling = {
        f"{own}_{name}": numbers[field][name]
        for own, field in (("state", "proprio"), ("actions", "action"))
        for name in ("mean", "std")
    }
    sizes = {"chunk_size": config.chunk_size, "max_state_dim": config.max_state_dim}
    return {**scaling, **sizes, "image_processor": image, "processor_class": "PI0Processor"}


def _tokenizer() -> Tokenizer:
    """Return a small tokenizer that falls back to bytes for unknown text."""
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[-1], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=_TOKENS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(INSTRUCTIONS, trainer)
    return tokenizer


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
