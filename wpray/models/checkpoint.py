"""Checkpoints in safetensors files: search, checks of their headers, and reading to the device. No pickle is read.

The steps are the same for every model: `resolve_checkpoint` finds the file or the index of shards, `read_headers`
(header.py) lists its tensors, tensor_names.py maps their names, `verified` compares them with a manifest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from wpray.errors import BadInputError, shown
from wpray.models.adapters import RAW, AdapterSettings, FileAdapter, check_adapter, overlaid
from wpray.models.config import (
    ActionExpertConfig,
    Precision,
    TensorManifest,
    VlmConfig,
    action_expert_manifest,
    infer_action_expert_config,
    infer_vlm_config,
    vlm_manifest,
)
from wpray.models.header import FILE, INDEX, Header, is_index, read_headers, summary
from wpray.models.stored_table import StoredTable, Table
from wpray.models.tensor_names import TensorNames, plain_names, vlm_names

_TIED = {  # name in the manifest -> the other name under which the same tensor may be stored
    "paligemma.lm_head.weight": "paligemma.model.language_model.embed_tokens.weight",
    "paligemma_with_expert.paligemma.lm_head.weight": (
        "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    ),
    "paligemma_with_expert.gemma_expert.lm_head.weight": (
        "paligemma_with_expert.gemma_expert.model.embed_tokens.weight"
    ),
}
TABLES = frozenset({"paligemma.lm_head.weight", "paligemma_with_expert.paligemma.lm_head.weight"})
SYNTHETIC = "wpray.synthetic"  # key in the metadata of a file of random weights
UNUSED = frozenset(
    {
        "paligemma_with_expert.gemma_expert.lm_head.weight",
        "paligemma_with_expert.paligemma.model.language_model.norm.weight",
    }
)
UNUSED_OF_JOINT = frozenset({"paligemma_with_expert.gemma_expert.lm_head.weight"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ROWS = 4096  # rows of two tied tables that are compared at once
_READERS = 4  # threads: one copies 13 GB from the page cache to an H200 in 2.3 s, four in 0.9 s
_ENABLE = "set lora_enabled: true, with pretrained_weight_path and lora_alpha"
_MERGE = "merge it into its base model and name the folder of the result"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Checkpoint whose headers match its model's layout."""

    path: Path  # the file, or the index of its shards
    stored: dict[str, str]  # manifest name -> name in the files
    manifest: TensorManifest
    synthetic: bool = False  # random weights of `python -m wpray.models.synthetic`
    places: Mapping[str, Path] = field(default_factory=dict)  # name in the files -> shard; else it is in `path`
    files: tuple[Path, ...] = ()  # all files of the checkpoint
    dtypes: Mapping[str, str] = field(default_factory=dict)  # name in the files -> stored dtype, such as BF16
    left_out: tuple[str, ...] = ()  # names in the files that are not this model's
    notes: tuple[str, ...] = ()  # differences of its names from the manifest's, in words
    unused: frozenset[str] = UNUSED  # manifest names that may be absent and are not read
    adapter: FileAdapter | None = None  # of LoRA, beside these weights

    def tensors(self, device: torch.device, precision: Precision) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of all used tensors, one at a time, on `device`, in the dtype of `precision`.

        The embedding table is left to `table`.
        """
        used = [name for name in self.stored if name not in self.unused | TABLES]
        for path, names in itertools.groupby(sorted(used, key=self._place), key=self._place):
            own = list(names)
            for name, stored in zip(own, _read(path, [self.stored[name] for name in own], device), strict=True):
                tensor = stored.to(self._dtype(name, precision))
                yield from ((name, tensor),) if self.adapter is None else self.adapter.applied(name, tensor)

    def table(self, precision: Precision) -> Table:
        """Return the embedding table, whose rows are read when they are needed."""
        (name,) = TABLES & self.stored.keys()
        table = StoredTable(self._place(name), self.stored[name], self._dtype(name, precision))
        return table if self.adapter is None or not self.adapter.table else self.adapter.applied_to_table(table)

    @property
    def dtype_counts(self) -> Counter[str]:
        """Number of tensors stored in each dtype."""
        return Counter(self.dtypes[stored] for stored in self.stored.values())

    @property
    def facts(self) -> dict[str, Any]:
        """Values for run.json: file, dtypes, unusual names, tensors that were left out."""
        left_out = {"left_out": summary(self.left_out)} if self.left_out else {}
        notes = {"notes": list(self.notes)} if self.notes else {}
        adapter = {"adapter": self.adapter.settings.facts} if self.adapter else {}
        dtypes = dict(sorted(self.dtype_counts.items()))
        return {"path": str(self.path), "dtypes": dtypes, **notes, **left_out, **adapter}

    def describe(self) -> str:
        """Return its unusual properties in a line; empty if there are none."""
        left_out = [f"left out: {', '.join(summary(self.left_out))}"] if self.left_out else []
        return "; ".join([*self.notes, *left_out])

    def _place(self, name: str) -> Path:
        return self.places.get(self.stored[name], self.path)

    def _dtype(self, name: str, precision: Precision) -> torch.dtype:
        return getattr(torch, self.manifest[name][1]) if precision == "bfloat16" else torch.float32


def _read(path: Path, names: Iterable[str], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the tensors of a file in order, on `device`; threads read a few of them ahead."""
    with safe_open(path, framework="pt", device=str(device)) as file, ThreadPoolExecutor(_READERS) as readers:
        ahead: deque[Future[torch.Tensor]] = deque()
        for name in names:
            ahead.append(readers.submit(file.get_tensor, name))
            if len(ahead) > _READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def open_vlm(path: str | Path, setting: str = "vlm_checkpoint") -> tuple[Checkpoint, VlmConfig]:
    """Return the VLM checkpoint at `path`, of either key layout, or inside an action expert's structure.

    Raise BadInputError, which names `setting` and lists every wrong key.
    """
    header = read_headers(resolve_checkpoint(path, setting), setting)
    with refused_as(header, setting):
        names = vlm_names(header.shapes)
        config = infer_vlm_config(shapes_of(header, names))
    return verified(header, names, vlm_manifest(config, "bfloat16"), setting), config


def open_action_expert(path: str | Path, setting: str = "ae_checkpoint") -> tuple[Checkpoint, ActionExpertConfig]:
    """Return the action expert checkpoint at `path`.

    Raise BadInputError, which names `setting` and lists every wrong key.
    """
    header = read_headers(resolve_checkpoint(path, setting), setting)
    with refused_as(header, setting):
        names = plain_names(header.shapes)
        config = infer_action_expert_config(shapes_of(header, names))
    return verified(header, names, action_expert_manifest(config, "bfloat16"), setting), config


def open_joint(path: str | Path, setting: str = "joint_checkpoint") -> tuple[Checkpoint, ActionExpertConfig]:
    """Return the joint checkpoint at `path`: an action expert whose backbone plans, too.

    Raise BadInputError, which names `setting` and lists every wrong key.
    """
    header = read_headers(resolve_checkpoint(path, setting), setting)
    with refused_as(header, setting):
        names = plain_names(header.shapes)
        config = infer_action_expert_config(shapes_of(header, names))
    return verified(header, names, action_expert_manifest(config, "bfloat16"), setting, UNUSED_OF_JOINT), config


def open_adapted(
    adapter: Path, base: Path, settings: AdapterSettings, setting: str
) -> tuple[Checkpoint, ActionExpertConfig]:
    """Return the joint model that a base and an adapter's file beside it are together.

    Raise BadInputError, which names `setting` and lists every wrong key.
    """
    low_rank_header, base_header = read_headers(adapter, setting), read_headers(base, "pretrained_weight_path")
    header, names, low_rank = overlaid(base_header, low_rank_header)
    if not low_rank:
        raise BadInputError(f"{setting}: {adapter}: holds no weights of a LoRA adapter; set lora_enabled: false")
    with refused_as(header, setting, f"; see that pretrained_weight_path, {base}, is its base model"):
        config = infer_action_expert_config(shapes_of(header, names))
    manifest = action_expert_manifest(config, "bfloat16")
    found = verified(header, names, manifest, setting, UNUSED_OF_JOINT)
    full = {name for name, own in names.stored.items() if header.places[own] in low_rank_header.files}
    return replace(found, adapter=check_adapter(settings, low_rank, full, low_rank_header, manifest, setting)), config


def resolve_checkpoint(path: str | Path, setting: str, names: tuple[str, ...] = (FILE, INDEX)) -> Path:
    """Return the safetensors file, or the index of shards, of a training step's or a model's directory.

    `names` are the files that the directory may hold; the first that exists counts. Raise BadInputError if none does.
    """
    path = Path(path).expanduser()
    files = [path / name for name in names] if os.path.isdir(path) else [path]
    found = next((file for file in files if os.path.isfile(file) and _may_be_read(file)), None)
    if found is None:
        raise BadInputError(f"{setting}: {path}: {_instead(path, names)}")
    return found


@contextlib.contextmanager
def refused_as(header: Header, setting: str, remedy: str = "") -> Iterator[None]:
    """Add the setting, the file and its content to a BadInputError raised in this context."""
    try:
        yield
    except BadInputError as error:
        holds = summary(header.shapes)
        listed = ", ".join(holds[:8]) + (", ..." if len(holds) > 8 else "")
        hint = remedy or _lora_hint(header.shapes)
        if "gemma_expert" in str(error) and not any("gemma_expert" in name for name in header.shapes):
            hint = hint or "; see that vlm_checkpoint and ae_checkpoint are not swapped"
        raise BadInputError(f"{setting}: {header.path}: {error}; found: {listed or 'no tensors'}{hint}") from error


def shapes_of(header: Header, names: TensorNames) -> dict[str, tuple[int, ...]]:
    """Return the shapes by the manifest's names."""
    return {name: header.shapes[own] for name, own in names.stored.items()}


def verified(
    header: Header, names: TensorNames, manifest: TensorManifest, setting: str, unused: frozenset[str] = UNUSED
) -> Checkpoint:
    """Return the checkpoint if it holds exactly the tensors and shapes of `manifest`; `unused` ones may be absent.

    Raise BadInputError that lists every tensor that is missing, unknown or misshapen, or if both names of tied weights
    exist and their tensors differ.
    """
    stored = names.stored
    found: dict[str, str] = {}
    for name in manifest:
        other = _TIED.get(name, "")
        if name in stored or other in stored:
            found[name] = stored[name] if name in stored else stored[other]
    twice = {other: name for name, other in _TIED.items() if name in manifest and name in stored and other in stored}
    problems = list(_problems(header, names, manifest, found, twice, unused))
    if problems:
        hint = _lora_hint(header.shapes)
        raise BadInputError(f"{setting}: {header.path}: not this model's checkpoint; {'; '.join(problems)}{hint}")
    for other, name in twice.items():
        if name not in unused and not _equal(header, stored[name], stored[other]):
            both = f"{stored[name]} and {stored[other]} are the same weights in this model, but differ"
            raise BadInputError(f"{setting}: {header.path}: {both}; remove the one that was not trained")
    return Checkpoint(
        header.path,
        found,
        manifest,
        synthetic=SYNTHETIC in header.metadata,
        places=header.places,
        files=header.files,
        dtypes=header.dtypes,
        left_out=names.left_out,
        notes=(*names.notes, *_beside(header.path)),
        unused=unused,
    )


def _problems(
    header: Header,
    names: TensorNames,
    manifest: TensorManifest,
    found: Mapping[str, str],
    twice: Mapping[str, str],
    unused: frozenset[str],
) -> Iterator[str]:
    known = {*found.values(), *(names.stored[other] for other in twice)}
    missing = sorted(set(manifest) - set(found) - unused)
    unknown = sorted(set(header.shapes) - known - set(names.left_out))
    stored = {**found, **{other: names.stored[other] for other in twice}}
    expected = {**{name: manifest[name][0] for name in found}, **{o: manifest[n][0] for o, n in twice.items()}}
    wrong = sorted(
        f"{name} {header.shapes[own]} instead of {expected[name]}"
        for name, own in stored.items()
        if header.shapes[own] != expected[name]
    )
    for what, listed in (("missing", missing), ("unknown", list(map(shown, unknown))), ("shape", wrong)):
        if listed:
            yield f"{what}: {', '.join(listed)}"


def _equal(header: Header, one: str, other: str) -> bool:
    """Return True if two tensors of the same shape hold the same numbers; they are read in pieces."""
    with (
        safe_open(header.places[one], framework="pt") as left,
        safe_open(header.places[other], framework="pt") as right,
    ):
        rows = header.shapes[one][0]
        a, b = left.get_slice(one), right.get_slice(other)
        return all(
            torch.equal(a[row : row + _ROWS].double(), b[row : row + _ROWS].double()) for row in range(0, rows, _ROWS)
        )


def _lora_hint(names: Mapping[str, Any]) -> str:
    """Return the remedy for an adapter's weights; empty if there are none."""
    adapter = any("lora_" in name.lower() for name in names)
    return f"; these are weights of a LoRA adapter: {_MERGE}" if adapter else ""


def _beside(path: Path) -> Iterator[str]:
    if path.name == FILE and os.path.isfile(path.with_name(INDEX)):
        yield f"{INDEX} beside it is not read"


def _may_be_read(file: Path) -> bool:
    adapter = file.name.startswith("adapter_model")
    shard = "-of-" in file.name and os.path.isfile(file.with_name(INDEX))
    return is_index(file) or (file.suffix == ".safetensors" and not adapter and not shard)


def _instead(path: Path, names: tuple[str, ...]) -> str:
    """Return a description of what is at `path` instead of a checkpoint, and the remedy."""
    remedy = f"name a directory that holds {names[0]}"
    if not os.path.lexists(path):
        return f"no checkpoint here (no such file or folder); {remedy}"
    inside = _names_in(path) if os.path.isdir(path) else [path.name]
    folder = path if os.path.isdir(path) else path.parent
    dangling = [name for name in inside if os.path.islink(folder / name) and not os.path.exists(folder / name)]
    if dangling:
        return f"{shown(dangling[0])} is a link to a file that is not there; download the checkpoint again"
    if RAW in inside:
        return f"holds a LoRA adapter ({RAW}) and no whole model; {_ENABLE}, or {_MERGE}"
    if any(name.startswith("adapter_") for name in inside):
        return f"holds a LoRA adapter ({_some(inside)}), no whole model; {_MERGE}"
    if not os.path.isdir(path) and "-of-" in path.name and path.suffix == ".safetensors":
        return f"is one shard of several; name its folder, {path.parent}"
    if any(name.endswith(_PICKLES) for name in inside):
        return f"no checkpoint here (found: {_some(inside)}); pickles are never read: save it as {names[0]}"
    below = sorted(str(file.parent.relative_to(path)) for name in names for file in _below(path, name))
    if below:
        return f"no checkpoint here, but in {_some(below)} below; {remedy}"
    return f"no checkpoint here (found: {_some(inside) or 'an empty folder'}); {remedy}"


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _below(path: Path, name: str) -> Iterator[Path]:
    for pattern in ("*/", "*/*/"):
        yield from itertools.islice(path.glob(pattern + name), 20)


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", ..." if len(names) > 5 else "")
