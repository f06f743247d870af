"""LoRA adapters beside a base model: their files chosen and checked by headers, their tensors read.

An adapter's file holds A and B of every adapted layer, and the tensors that were trained in full. Adapter and base
together must hold exactly the tensors of a joint model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from wpray.errors import BadInputError, shown
from wpray.models.config import TensorManifest
from wpray.models.header import Header
from wpray.models.lora import HIGH, LOW, SCALE, AdaptedTable, merged
from wpray.models.stored_table import StoredTable
from wpray.models.tensor_names import TensorNames, plain_names

RAW, EMA = "lora.safetensors", "lora_ema.safetensors"
ApplyTo = Literal["all", "backbone_only", "expert_only"]
VisionMode = Literal["freeze", "lora", "full"]
SKIPPED = (  # parts of the names of layers without an adapter
    *("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out"),
    *("goal_encoder", "multi_modal_projector", "lm_head"),
)
TRAINED = (  # parts of the names of tensors that an adapter's file holds in full
    *("action_in_proj", "action_out_proj", "proprio_encoder", "time_mlp_in", "time_mlp_out", "duration_embed"),
    *("multi_modal_projector", "block_planner", "goal_encoder"),
)
_TABLE = "paligemma_with_expert.paligemma.model.language_model.embed_tokens"
_TABLE_LOW, _TABLE_HIGH = ".lora_embedding_A", ".lora_embedding_B"
_VISION = ("vision_tower", "vision_model")
_LEFT_OUT_BY: Mapping[ApplyTo, str] = {"backbone_only": "gemma_expert", "expert_only": "paligemma"}
_NOT_LINEAR = ("embed", "block_planner.", "norm.weight")  # parts of names


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Settings of a configuration about an adapter."""

    base: str  # the model that it was trained beside
    rank: int
    alpha: float
    by_root: bool = False  # rank-stabilized: the scale is alpha / sqrt(rank)
    apply_to: ApplyTo = "all"
    vision: VisionMode = "freeze"
    skipped: tuple[str, ...] = SKIPPED
    trained: tuple[str, ...] = TRAINED
    merge: bool = False
    slim: bool = True  # B is multiplied by the scale, in its own dtype
    ema: bool = False  # the averaged weights
    allow_stale: bool = False

    @property
    def scale(self) -> float:
        """Factor of B (A x)."""
        return self.alpha / (math.sqrt(self.rank) if self.by_root else self.rank)

    @property
    def facts(self) -> dict[str, Any]:
        """Form of its computation, for run.json."""
        return {
            "mode": "merged" if self.merge else "active",
            "weights": "ema" if self.ema else "raw",
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "slim": self.slim and not self.merge,
        }


@dataclass(frozen=True, slots=True)
class FileAdapter:
    """An adapter whose tensors fit a model."""

    path: Path
    settings: AdapterSettings
    stored: Mapping[str, str]  # name of A or B -> name in the file

    @property
    def table(self) -> bool:
        """True if the embedding table has an adapter, too."""
        return _TABLE + _TABLE_LOW in self.stored

    def applied(self, name: str, base: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield a weight, merged, or with its active adapter's tensors after it."""
        module = name.removesuffix(".weight")
        if module + LOW not in self.stored:
            yield name, base
            return
        low, high = (self._read(module + part, base) for part in (LOW, HIGH))
        if self.settings.merge:
            yield name, merged(base, low, high, self.settings.scale)
            return
        high, scale = self._scaled(high)
        yield from ((name, base), (module + LOW, low), (module + HIGH, high), (module + SCALE, torch.tensor(scale)))

    def applied_to_table(self, base: StoredTable) -> AdaptedTable:
        """Return the table with its adapter."""
        low = StoredTable(self.path, self.stored[_TABLE + _TABLE_LOW], base.dtype)
        high = self._read(_TABLE + _TABLE_HIGH, torch.empty(0, dtype=base.dtype))
        scale = self.settings.scale
        if not self.settings.merge:
            high, scale = self._scaled(high)
        return AdaptedTable(base, low, high, scale, self.settings.merge)

    def _scaled(self, high: Tensor) -> tuple[Tensor, float]:
        scale = self.settings.scale
        return (high * scale, 1.0) if self.settings.slim else (high, scale)

    def _read(self, name: str, like: Tensor) -> Tensor:
        with safe_open(self.path, framework="pt", device=str(like.device)) as file:
            found: Tensor = file.get_tensor(self.stored[name])
            return found.to(like.dtype)


def overlaid(base: Header, adapter: Header) -> tuple[Header, TensorNames, dict[str, str]]:
    """Return base and adapter as one model's header, its names, and the names of A and B.

    A tensor that the adapter's file holds in full replaces the base's tensor of that name.
    """
    below, above = plain_names(base.shapes), plain_names(adapter.shapes)
    low_rank = {name: own for name, own in above.stored.items() if ".lora_" in name}
    full = {name: own for name, own in above.stored.items() if name not in low_rank}
    names = {**{name: own for name, own in below.stored.items() if name not in full}, **full}
    places = {own: (adapter if name in full else base) for name, own in names.items()}
    combined = Header(
        adapter.path,
        {own: header.shapes[own] for own, header in places.items()},
        {own: header.dtypes[own] for own, header in places.items()},
        {own: header.places[own] for own, header in places.items()},
        (*adapter.files, *base.files),
        {**base.metadata, **adapter.metadata},
    )
    return combined, TensorNames(names, notes=(*below.notes, *above.notes)), low_rank


def check_adapter(
    settings: AdapterSettings,
    low_rank: Mapping[str, str],
    full: Collection[str],
    adapter: Header,
    manifest: TensorManifest,
    setting: str,
) -> FileAdapter:
    """Return the adapter, if it holds exactly the tensors that its settings mean for a model of this manifest.

    `full` are the names of what its file holds in full. Raise BadInputError listing what is missing, unknown or
    misshapen.
    """
    expected = dict(_expected(settings, manifest))
    trained = {name for name in manifest if _is_trained(settings, name)}
    found = {name: adapter.shapes[own] for name, own in low_rank.items()}
    wrong = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems = [
        f"{what}: {', '.join(map(shown, sorted(names)[:8]))}{', ...' if len(names) > 8 else ''}"
        for what, names in (
            ("missing", {*expected, *trained} - {*found, *full}),
            ("unknown", {*found, *full} - {*expected, *trained}),
            ("shape", wrong),
        )
        if names
    ]
    if problems:
        said = f"lora_rank {settings.rank}, lora_apply_to {settings.apply_to}, vision_encoder_mode {settings.vision}"
        raise BadInputError(f"{setting}: {adapter.path}: not an adapter of {said}; {'; '.join(problems)}")
    return FileAdapter(adapter.path, settings, dict(low_rank))


def check_ema(metadata: Mapping[str, Any] | None, settings: AdapterSettings, what: str) -> str | None:
    """Return a warning if averaged weights hold much of what they began with; None if they do not.

    Raise BadInputError, beginning with `what`, if they hold too much of it or metadata.pt does not say how much, unless
    that is allowed.
    """
    names = ("global_step", "ema_decay", "ema_warmup_steps")
    values = [metadata.get(name) for name in names] if metadata is not None else []
    if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        said = f"{what}: metadata.pt beside it does not say {', '.join(names)}, so the average may be stale"
        return _stale(said, settings)
    step, decay, warm_up = (float(value) for value in values if value is not None)
    kept = 0.0 if step <= warm_up else decay ** (step - warm_up)
    said = f"{what}: {kept:.0%} of the average is what training had at the end of its warm-up"
    if kept > 0.5:
        return _stale(said, settings)
    return said if kept > 0.1 else None


def _stale(said: str, settings: AdapterSettings) -> str:
    if not settings.allow_stale:
        raise BadInputError(f"{said}; leave use_ema out, or set allow_stale_ema_forensics to evaluate it nevertheless")
    return f"{said} (allow_stale_ema_forensics)"


def _expected(settings: AdapterSettings, manifest: TensorManifest) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shape of each A and B."""
    for name, (shape, _) in manifest.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and name.endswith(".weight") and _is_adapted(settings, module):
            yield module + LOW, (settings.rank, shape[1])
            yield module + HIGH, (shape[0], settings.rank)
    if settings.apply_to != "expert_only":
        rows, width = manifest["paligemma_with_expert.paligemma.lm_head.weight"][0]
        yield _TABLE + _TABLE_LOW, (rows, settings.rank)
        yield _TABLE + _TABLE_HIGH, (settings.rank, width)


def _is_adapted(settings: AdapterSettings, module: str) -> bool:
    if any(part in module for part in settings.skipped) or any(part in f"{module}.weight" for part in _NOT_LINEAR):
        return False
    if any(part in module for part in _VISION) and settings.vision != "lora":
        return False
    return _LEFT_OUT_BY.get(settings.apply_to, "") not in module.split(".")


def _is_trained(settings: AdapterSettings, name: str) -> bool:
    if any(part in name for part in _VISION):
        return settings.vision == "full"
    return any(part in name for part in settings.trained)
