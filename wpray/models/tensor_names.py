"""Mapping of tensor names in files to those of the manifests (config.py).

Files differ by a common prefix and by the names of older Transformers, and a VLM may be inside the action expert's
structure. Each step returns name -> name in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wpray.errors import BadInputError, shown

NESTED = "paligemma_with_expert."
EXPERT_PARTS = (  # parts of the action expert's structure beside its PaliGemma
    f"{NESTED}gemma_expert.",
    "action_in_proj.",
    "action_out_proj.",
    "proprio_encoder.",
    "time_mlp_in.",
    "time_mlp_out.",
    "duration_embed.",
)
_WRAPPERS = ("model.", "module.", "_orig_mod.")  # of LeRobot, distributed training and torch.compile
_OLDER = re.compile(  # before Transformers 4.52
    rf"^((?:{re.escape(NESTED)})?paligemma\.)(language_model\.model|language_model\.lm_head|vision_tower|multi_modal_projector)\."
)
_NEWER = {
    "language_model.model": "model.language_model",
    "language_model.lm_head": "lm_head",
    "vision_tower": "model.vision_tower",
    "multi_modal_projector": "model.multi_modal_projector",
}


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Tensors of a file by a manifest's names."""

    stored: dict[str, str]  # name -> name in the file
    left_out: tuple[str, ...] = ()  # names in the file
    notes: tuple[str, ...] = ()  # interpretations of the file's names


def plain_names(stored: Iterable[str]) -> TensorNames:
    """Return a file's names without a common prefix, with older names replaced by new ones.

    Raise BadInputError if two of them then mean the same tensor.
    """
    names, notes = {name: name for name in stored}, []
    while names and (prefix := next((part for part in _WRAPPERS if _all_begin(names, part)), None)):
        names = {name.removeprefix(prefix): own for name, own in names.items()}
        notes.append(f"names begin with {prefix}")
    if any(_OLDER.match(name) for name in names):
        names = _renamed(names)
        notes.append("names are those of an older Transformers")
    return TensorNames(names, notes=tuple(notes))


def vlm_names(stored: Iterable[str]) -> TensorNames:
    """Return the names of a VLM in either key layout, or of the PaliGemma in an action expert's structure.

    Other names are kept, so that they are reported as unknown.
    """
    plain = plain_names(stored)
    if not any(name.startswith(NESTED + "paligemma.") for name in plain.stored):
        return plain
    left_out = [name for name in plain.stored if name.startswith(EXPERT_PARTS)]
    kept = {name.removeprefix(NESTED): own for name, own in plain.stored.items() if name not in left_out}
    notes = (*plain.notes, *["read out of an action expert's structure"] * bool(left_out))
    return TensorNames(kept, tuple(plain.stored[name] for name in left_out), notes)


def _all_begin(names: Mapping[str, str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, own in names.items():
        new = _OLDER.sub(lambda match: f"{match[1]}{_NEWER[match[2]]}.", name)
        if new in found:
            raise BadInputError(f"{shown(found[new])} and {shown(own)} are both {shown(new)}; keep one of them")
        found[new] = own
    return found
