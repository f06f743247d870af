"""Sizes of the two models, and the checkpoint layout that follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from wpray.errors import BadInputError

Precision = Literal["float32", "bfloat16"]
CheckpointLayout = Literal["two", "joint", "block"]
ModelVariant = Literal["tiny", "full"]
TensorManifest = dict[str, tuple[tuple[int, ...], Precision]]

VOCABULARY = 257152
MAX_DURATION = 33  # control steps of a segment, as the models count them
NUM_DURATIONS = MAX_DURATION + 1
DURATION_EMBED = "duration_embed.weight"
BLOCK_PLANNER = "block_planner."  # prefix of its tensors' names
IMAGE_SIZE, PATCH = 224, 14
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2  # of one camera


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """Sizes of a Gemma decoder stack."""

    width: int
    depth: int
    mlp: int
    heads: int
    head_dim: int
    kv_heads: int = 1


@dataclass(frozen=True, slots=True)
class SiglipConfig:
    """Sizes of a SigLIP vision tower at 224 pixels with patches of 14."""

    width: int
    depth: int
    mlp: int
    heads: int


GEMMAS = {
    "gemma_2b": GemmaConfig(2048, 18, 16384, 8, 256),
    "gemma_300m": GemmaConfig(1024, 18, 4096, 8, 256),
    "tiny_2b": GemmaConfig(64, 2, 128, 4, 16),
    "tiny_300m": GemmaConfig(32, 2, 64, 4, 16),
}
_SIGLIPS = {"so400m": SiglipConfig(1152, 27, 4304, 16), "tiny": SiglipConfig(32, 2, 64, 2)}

_Sized = TypeVar("_Sized", GemmaConfig, SiglipConfig)


@dataclass(frozen=True, slots=True)
class VlmConfig:
    """Sizes of the waypoint VLM."""

    vision: SiglipConfig
    text: GemmaConfig

    @classmethod
    def full(cls) -> VlmConfig:
        """Return PaliGemma 3B."""
        return cls(_SIGLIPS["so400m"], GEMMAS["gemma_2b"])

    @classmethod
    def tiny(cls) -> VlmConfig:
        """Return the same layout in a small size, for tests."""
        return cls(_SIGLIPS["tiny"], GEMMAS["tiny_2b"])


@dataclass(frozen=True, slots=True)
class BlockPlannerConfig:
    """Sizes of a block planner without its backbone."""

    rows: int  # tokens of a waypoint
    blocks: int | None  # waypoints with an embedding of their own; None without such embeddings


@dataclass(frozen=True, slots=True)
class ActionExpertConfig:
    """Sizes of the action expert: a PaliGemma prefix and a narrower Gemma that attends to it."""

    vision: SiglipConfig
    text: GemmaConfig
    expert: GemmaConfig
    action_dim: int = 32
    horizon: int = 32
    duration_embed: bool = False  # the duration is a token of the suffix and does not modulate the norms
    planner: BlockPlannerConfig | None = None  # of a joint model that plans a waypoint at once

    @classmethod
    def full(cls) -> ActionExpertConfig:
        """Return PaliGemma 3B with Gemma 300M."""
        return cls(_SIGLIPS["so400m"], GEMMAS["gemma_2b"], GEMMAS["gemma_300m"])

    @classmethod
    def tiny(cls) -> ActionExpertConfig:
        """Return the same layout in a small size, for tests."""
        return cls(_SIGLIPS["tiny"], GEMMAS["tiny_2b"], GEMMAS["tiny_300m"])


def vlm_manifest(config: VlmConfig, precision: Precision) -> TensorManifest:
    """Return name -> (shape, dtype) of every tensor in a VLM checkpoint, as training saves it.

    Training saves Gemma's norms in bfloat16 in a float32 file, and in float32 in a bfloat16 file.
    """
    manifest = _paligemma("paligemma.", config.vision, config.text, precision)
    if precision == "float32":
        norms = [name for name in manifest if "language_model" in name and "norm.weight" in name]
        manifest |= {name: (manifest[name][0], "bfloat16") for name in norms}
    return manifest


def action_expert_manifest(config: ActionExpertConfig, precision: Precision) -> TensorManifest:
    """Return name -> (shape, dtype) of every tensor in an action expert checkpoint, as training saves it.

    A joint checkpoint has the same tensors; its planner uses the action expert's backbone.
    """
    expert, width, dim = config.expert, config.expert.width, config.action_dim
    manifest = _paligemma("paligemma_with_expert.paligemma.", config.vision, config.text, precision)
    stem = "paligemma_with_expert.gemma_expert."
    manifest[stem + "lm_head.weight"] = ((VOCABULARY, width), precision)
    manifest |= _gemma(stem + "model.", expert, precision, adaptive=True)
    for name, rows, columns in (
        ("action_in_proj", width, dim),
        ("action_out_proj", dim, width),
        ("proprio_encoder", width, dim),
        ("time_mlp_in", width, width if config.duration_embed else 2 * width),
        ("time_mlp_out", width, width),
    ):
        manifest |= _linear(name, rows, columns, "float32")
    if config.duration_embed:
        manifest[DURATION_EMBED] = ((NUM_DURATIONS, width), "float32")
    if config.planner:
        manifest |= _block_planner(config.planner, config.text.width)
    return manifest


def infer_vlm_config(shapes: Mapping[str, tuple[int, ...]]) -> VlmConfig:
    """Return the sizes that follow from a checkpoint's shapes (names as in `vlm_manifest`)."""
    stem = "paligemma.model."
    return VlmConfig(_infer_siglip(shapes, stem), _infer_gemma(shapes, stem + "language_model."))


def infer_action_expert_config(shapes: Mapping[str, tuple[int, ...]]) -> ActionExpertConfig:
    """Return the sizes that follow from a checkpoint's shapes (names as in `action_expert_manifest`)."""
    stem = "paligemma_with_expert.paligemma.model."
    expert = _infer_gemma(shapes, "paligemma_with_expert.gemma_expert.model.")
    dim = _rows(shapes, "action_out_proj", ".bias")[0]
    planner = _infer_block_planner(shapes)
    return ActionExpertConfig(
        _infer_siglip(shapes, stem),
        _infer_gemma(shapes, stem + "language_model."),
        expert,
        action_dim=dim,
        duration_embed=DURATION_EMBED in shapes or planner is not None,  # every known block planner has it
        planner=planner,
    )


def _infer_block_planner(shapes: Mapping[str, tuple[int, ...]]) -> BlockPlannerConfig | None:
    if not any(name.startswith(BLOCK_PLANNER) for name in shapes):
        return None
    rows = _rows(shapes, BLOCK_PLANNER, "query_resid")[0]
    blocks = shapes.get(BLOCK_PLANNER + "block_embed.weight")
    return BlockPlannerConfig(rows, blocks[0] if blocks else None)


def _block_planner(config: BlockPlannerConfig, width: int) -> TensorManifest:
    rows: dict[str, int] = {"query_resid": config.rows, "slot_embed.weight": config.rows}
    if config.blocks is not None:
        rows["block_embed.weight"] = config.blocks
    return {BLOCK_PLANNER + name: ((count, width), "float32") for name, count in rows.items()}


def _infer_gemma(shapes: Mapping[str, tuple[int, ...]], stem: str) -> GemmaConfig:
    return _of_usual_width(GEMMAS.values(), shapes, stem + "layers.", ".mlp.down_proj.weight")


def _infer_siglip(shapes: Mapping[str, tuple[int, ...]], stem: str) -> SiglipConfig:
    start = stem + "vision_tower.vision_model.encoder.layers."
    return _of_usual_width(_SIGLIPS.values(), shapes, start, ".layer_norm1.weight")


def _of_usual_width(known: Collection[_Sized], shapes: Mapping[str, tuple[int, ...]], start: str, end: str) -> _Sized:
    """Return the known size that most layers have, so that a missing or odd layer is listed among the errors."""
    rows = _rows(shapes, start, end)
    for width, _ in Counter(rows).most_common():
        for size in known:
            if size.width == width:
                return size
    raise BadInputError(f"{start}*{end} has {rows[0]} rows; known are {sorted(size.width for size in known)}")


def _rows(shapes: Mapping[str, tuple[int, ...]], start: str, end: str) -> list[int]:
    """Return the first dimension of each tensor whose name is `start`...`end`."""
    rows = [shape[0] for name, shape in shapes.items() if name.startswith(start) and name.endswith(end) and shape]
    if not rows:
        raise BadInputError(f"the checkpoint lacks {start}*{end}: it is not of this model")
    return rows


def _paligemma(stem: str, vision: SiglipConfig, text: GemmaConfig, precision: Precision) -> TensorManifest:
    manifest: TensorManifest = {stem + "lm_head.weight": ((VOCABULARY, text.width), precision)}
    manifest |= _gemma(stem + "model.language_model.", text, precision, adaptive=False)
    manifest |= _linear(stem + "model.multi_modal_projector.linear", text.width, vision.width, precision)
    tower = stem + "model.vision_tower.vision_model."
    manifest[tower + "embeddings.patch_embedding.bias"] = ((vision.width,), "float32")
    manifest[tower + "embeddings.patch_embedding.weight"] = ((vision.width, 3, PATCH, PATCH), "float32")
    manifest[tower + "embeddings.position_embedding.weight"] = ((IMAGE_TOKENS, vision.width), "float32")
    for layer in range(vision.depth):
        block = f"{tower}encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            manifest |= _norm(block + norm, vision.width, precision)
        manifest |= _linear(block + "mlp.fc1", vision.mlp, vision.width, precision)
        manifest |= _linear(block + "mlp.fc2", vision.width, vision.mlp, precision)
        for projection in ("k_proj", "out_proj", "q_proj", "v_proj"):
            manifest |= _linear(f"{block}self_attn.{projection}", vision.width, vision.width, precision)
    return manifest | _norm(tower + "post_layernorm", vision.width, precision)


def _gemma(stem: str, config: GemmaConfig, precision: Precision, adaptive: bool) -> TensorManifest:
    manifest: TensorManifest = {}
    width, inner, kv = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
    for layer in range(config.depth):
        block = f"{stem}layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            manifest |= _rms_norm(block + norm, width, adaptive)
        manifest[block + "mlp.down_proj.weight"] = ((width, config.mlp), precision)
        manifest[block + "mlp.gate_proj.weight"] = ((config.mlp, width), precision)
        manifest[block + "mlp.up_proj.weight"] = ((config.mlp, width), precision)
        manifest[block + "self_attn.k_proj.weight"] = ((kv, width), precision)
        manifest[block + "self_attn.o_proj.weight"] = ((width, inner), precision)
        manifest[block + "self_attn.q_proj.weight"] = ((inner, width), precision)
        manifest[block + "self_attn.v_proj.weight"] = ((kv, width), precision)
    return manifest | _rms_norm(stem + "norm", width, adaptive)


def _rms_norm(name: str, width: int, adaptive: bool) -> TensorManifest:
    if adaptive:
        return _linear(name + ".dense", 3 * width, width, "float32")
    return {name + ".weight": ((width,), "float32")}


def _linear(name: str, rows: int, columns: int, precision: Precision) -> TensorManifest:
    return {name + ".bias": ((rows,), precision), name + ".weight": ((rows, columns), precision)}


def _norm(name: str, width: int, precision: Precision) -> TensorManifest:
    return {name + ".bias": ((width,), precision), name + ".weight": ((width,), precision)}
