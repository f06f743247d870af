"""Content of checkpoints and their need for GPU memory, from the headers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wpray.config import Config
from wpray.models.checkpoint import TABLES, Checkpoint
from wpray.models.config import IMAGE_TOKENS, GemmaConfig, Precision
from wpray.models.tensor_names import NESTED
from wpray.models.token_layout import BINS256
from wpray.policies.waypoint_vla.model_files import open_files
from wpray.policies.waypoint_vla.prompt import MAX_ACTION_PROMPT_TOKENS
from wpray.policies.waypoint_vla.request_kinds import PLAN, SEGMENT
from wpray.policies.waypoint_vla.spec import spec_of

_GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
_WAYPOINT_TOKENS = BINS256.tokens_per_waypoint  # of the longer layout
_ACTIVATIONS = 3  # tensors of the MLP's width that exist at once while a prompt is read


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Checkpoint of one model, with its configured precision."""

    name: str
    file: Checkpoint
    text: GemmaConfig
    precision: Precision

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights on the GPU, in the configured precision."""
        tensors = (
            entry
            for name, entry in self.file.manifest.items()
            if name in self.file.stored.keys() - self.file.unused - TABLES
        )
        return sum(math.prod(shape) * _BYTES["float32" if self._wide(kind) else kind] for shape, kind in tensors)

    def describe(self) -> str:
        """Return the path, key layout, stored dtypes and size on the GPU in a line."""
        nested = any(NESTED in stored and NESTED not in name for name, stored in self.file.stored.items())
        layout = "nested keys, " if nested else ""
        size = f"{self.num_bytes / _GIB:.2f} GiB on the GPU in {self.precision}"
        unusual = f"; {self.file.describe()}" if self.file.describe() else ""
        dtypes = ", ".join(f"{count} {name}" for name, count in self.file.dtype_counts.most_common())
        return f"{self.file.path}: {layout}{len(self.file.stored)} tensors ({dtypes}), {size}{unusual}"

    def _wide(self, kind: Precision) -> bool:
        return self.precision == "float32" or kind == "float32"


def read(config: Config) -> tuple[ModelWeights, ModelWeights]:
    """Return the planner and the action expert; a joint checkpoint is both.

    Raise BadInputError if files, layouts or sizes do not match the configuration.
    """
    files = open_files(config).models
    if files.joint:
        adapter = "" if files.expert.adapter is None else f", {files.facts['adapter']} LoRA adapter"
        planner = "" if files.expert_config.planner is None else ", block planner"
        name = f"joint model ({files.tokens.name}{planner}{adapter})"
        both = ModelWeights(name, files.expert, files.expert_config.text, config.precision)
        return both, both
    vlm = ModelWeights("VLM", files.vlm, files.vlm_config.text, config.vlm_precision)
    return vlm, ModelWeights("action expert", files.expert, files.expert_config.text, config.precision)


def warnings(config: Config) -> tuple[str, ...]:
    """Return what the files leave in doubt: another file in the same folder, merged weights, a stale average."""
    files = open_files(config).models
    others = (
        f"{chosen.setting}: {chosen.path} is read ({chosen.reason}); {chosen.passed_over} beside it is not"
        for chosen in files.chosen
        if chosen.passed_over is not None
    )
    return (*others, *files.warnings)


def distinct(vlm: ModelWeights, expert: ModelWeights) -> list[ModelWeights]:
    """Return each loaded model once."""
    return [vlm] if vlm is expert else [vlm, expert]


def working_memory(config: Config, vlm: ModelWeights, expert: ModelWeights) -> int:
    """Return an estimate of the memory for batches, bytes.

    It holds keys and values of both models' largest batches, and the activations of the widest layer while prompts are
    read, which only one model does at a time.
    """
    plan = 2 * IMAGE_TOKENS + config.longest_plan_prompt + _WAYPOINT_TOKENS * config.num_waypoints
    act = 2 * IMAGE_TOKENS + MAX_ACTION_PROMPT_TOKENS + config.horizon_steps
    most = spec_of(config).max_batch_size
    needs = [
        (vlm, plan, PLAN.largest(vlm.precision, most, config.batching.deterministic)),
        (expert, act, SEGMENT.largest(expert.precision, most, config.batching.deterministic)),
    ]
    kept = sum((shape.rows + shape.reads[-1]) * tokens * _kept_bytes(model) for model, tokens, shape in needs)
    return kept + max(shape.reads[-1] * tokens * _active_bytes(model) for model, tokens, shape in needs)


def is_synthetic(config: Config) -> bool:
    """Return True if the VLM's file holds random weights for tests."""
    return open_files(config).models.vlm.synthetic


def _kept_bytes(model: ModelWeights) -> int:
    """Return the bytes of a token's keys and values."""
    text = model.text
    return 2 * text.depth * text.kv_heads * text.head_dim * _BYTES[model.precision]


def _active_bytes(model: ModelWeights) -> int:
    """Return the bytes of a token's activations in the widest layer."""
    return _ACTIVATIONS * model.text.mlp * _BYTES[model.precision]
