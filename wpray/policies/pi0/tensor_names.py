"""Names of a checkpoint's tensors: Transformers' own, or LeRobot's, which Transformers renames when it loads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from wpray.errors import BadInputError, shown
from wpray.models.header import Header

Shapes = Mapping[str, tuple[int, ...]]

_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.(?=paligemma_with_expert\.|state_proj\.|action_)", ""),
        (r"^paligemma_with_expert\.gemma_expert\.lm_head\.", "model.dit.embed_tokens."),
        (r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
        (r"^paligemma_with_expert\.paligemma\.lm_head\.", "model.vlm.language_model.embed_tokens."),
        (r"^paligemma_with_expert\.paligemma\.model\.", "model.vlm."),
        (r"^model\.vlm\.vision_tower\.vision_model\.", "model.vlm.vision_tower."),
        (r"^model\.vlm\.language_model\.model\.", "model.vlm.language_model."),
        (r"^(?=(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.)", "embed_action_time."),
    )
)


def own_name(stored: str) -> str:
    """Return Transformers' name of a tensor that may be stored under LeRobot's."""
    for pattern, name in _RENAMED:
        stored = pattern.sub(name, stored)
    return stored


def check_tensors(header: Header, expected: Shapes, setting: str) -> None:
    """Raise BadInputError, listing every wrong tensor, unless the files hold exactly those that are expected."""
    problems = list(_problems(header.shapes, expected))
    if problems:
        raise BadInputError(
            f"{setting}: {header.path}: not the tensors of its config.json; {'; '.join(problems)}; copy both from the "
            "same checkpoint"
        )


def _problems(stored: Shapes, expected: Shapes) -> Iterator[str]:
    found: dict[str, str] = {}
    for name in stored:
        if (own := own_name(name)) in found:
            yield f"twice: {shown(found[own])} and {shown(name)}"
        found[own] = name
    yield from _listed("missing", sorted(set(expected) - set(found)))
    yield from _listed("unknown", sorted(found[own] for own in set(found) - set(expected)))
    yield from _listed(
        "shape",
        sorted(
            f"{name} {stored[found[name]]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and stored[found[name]] != shape
        ),
    )


def _listed(what: str, names: list[str], most: int = 20) -> Iterator[str]:
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        yield f"{what}: {', '.join(map(shown, names[:most]))}{more}"
