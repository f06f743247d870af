"""Checkpoints as people have them: shards, prefixes, older names, joint structures; and what is refused by its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.checkpoint_files import (
    Shapes,
    expert_shapes,
    vlm_shapes,
    write_hollow,
    write_hollow_shards,
    write_index,
)
from tests.tiny_weights import save, state_dict
from wpray.errors import BadInputError
from wpray.models.checkpoint import TABLES, Checkpoint, open_action_expert, open_vlm, resolve_checkpoint
from wpray.models.config import ActionExpertConfig, VlmConfig, action_expert_manifest, vlm_manifest

CPU = torch.device("cpu")
JOINT = "paligemma_with_expert."
HEAD, TABLE = "paligemma.lm_head.weight", "paligemma.model.language_model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
State = dict[str, torch.Tensor]
OPEN = {"vlm_checkpoint": open_vlm, "ae_checkpoint": open_action_expert}
SHAPES = {"vlm_checkpoint": vlm_shapes, "ae_checkpoint": expert_shapes}
CONFIGS = {"vlm_checkpoint": VlmConfig.tiny(), "ae_checkpoint": ActionExpertConfig.tiny()}
SETTINGS = tuple(OPEN)


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {
        "vlm_checkpoint": state_dict(vlm_manifest(VlmConfig.tiny(), "bfloat16"), seed=0),
        "ae_checkpoint": state_dict(action_expert_manifest(ActionExpertConfig.tiny(), "bfloat16"), seed=0),
    }


def _values(checkpoint: Checkpoint) -> State:
    (name,) = TABLES & checkpoint.stored.keys()
    return {**dict(checkpoint.tensors(CPU, "float32")), name: checkpoint.table("float32").take(range(0, 257152, 997))}


def _assert_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def _older(name: str) -> str:
    for new, old in (
        ("paligemma.model.language_model.", "paligemma.language_model.model."),
        ("paligemma.lm_head.", "paligemma.language_model.lm_head."),
        ("paligemma.model.vision_tower.", "paligemma.vision_tower."),
        ("paligemma.model.multi_modal_projector.", "paligemma.multi_modal_projector."),
    ):
        name = name.replace(new, old)
    return name


def _shards(state: State, folder: Path) -> None:
    names, mapping = sorted(state), {}
    for number in range(3):
        part = {name: state[name] for name in names[number::3]}
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        save(part, folder)
        (folder / "model.safetensors").rename(folder / file)
        mapping |= dict.fromkeys(part, file)
    write_index(folder, mapping)


WAYS: dict[str, Callable[[State, Path], None]] = {
    "shards": _shards,
    "prefix": lambda state, folder: save({"model." + name: value for name, value in state.items()}, folder),
    "two prefixes": lambda state, folder: save({"_orig_mod.module." + k: v for k, v in state.items()}, folder),
    "older names": lambda state, folder: save({_older(name): value for name, value in state.items()}, folder),
    "older names in shards with a prefix": lambda state, folder: _shards(
        {"model." + _older(name): value for name, value in state.items()}, folder
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_way_of_storing_a_model_is_the_same_model(tmp_path: Path, states: dict[str, State], setting: str) -> None:
    save(states[setting], tmp_path / "plain")
    expected = _values(OPEN[setting](tmp_path / "plain")[0])
    for way, write in WAYS.items():
        (tmp_path / way).mkdir()
        write(states[setting], tmp_path / way)
        checkpoint, config = OPEN[setting](tmp_path / way)
        assert config == CONFIGS[setting]
        _assert_same(_values(checkpoint), expected)
        assert checkpoint.synthetic, "a shard's metadata counts"
        assert set(checkpoint.files) == {file for file in (tmp_path / way).iterdir()}, "all are hashed"
        assert checkpoint.path == checkpoint.files[0]
        shutil.rmtree(tmp_path / way)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("older", [False, True])
def test_a_vlm_is_read_out_of_an_action_experts_structure(
    tmp_path: Path, states: dict[str, State], prefix: str, older: bool
) -> None:
    vlm, expert = states["vlm_checkpoint"], states["ae_checkpoint"]
    joint = {**expert, **{JOINT + name: value for name, value in vlm.items()}}
    save({prefix + (_older(name) if older else name): value for name, value in joint.items()}, tmp_path / "joint")
    save(vlm, tmp_path / "plain")
    checkpoint, config = open_vlm(tmp_path / "joint")
    assert config == VlmConfig.tiny()
    _assert_same(_values(checkpoint), _values(open_vlm(tmp_path / "plain")[0]))
    rest = {prefix + name for name in expert if not name.startswith(JOINT + "paligemma.")}
    assert set(checkpoint.left_out) == rest
    for said in (checkpoint.describe(), json.dumps(checkpoint.facts)):
        assert "read out of an action expert's structure" in said
        assert "gemma_expert.* (25)" in said or "paligemma_with_expert.* (25)" in said
        assert "time_mlp_in" in said
    assert open_vlm(tmp_path / "plain")[0].describe() == ""


def test_an_action_experts_own_file_is_a_vlm_by_its_names_and_says_so(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model.safetensors", expert_shapes())
    checkpoint, _ = open_vlm(tmp_path)
    assert checkpoint.facts["left_out"] == [
        "action_in_proj.* (2)",
        "action_out_proj.* (2)",
        "paligemma_with_expert.gemma_expert.* (25)",
        "proprio_encoder.* (2)",
        "time_mlp_in.* (2)",
        "time_mlp_out.* (2)",
    ]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_any_float_is_read_as_the_run_wants_it(tmp_path: Path, setting: str, dtype: str) -> None:
    write_hollow(tmp_path / "model.safetensors", SHAPES[setting](), dtype)
    checkpoint, _ = OPEN[setting](tmp_path)
    assert checkpoint.dtype_counts.keys() == {dtype}
    assert checkpoint.facts["dtypes"] == {dtype: len(checkpoint.stored)}
    assert {tensor.dtype for _, tensor in checkpoint.tensors(CPU, "float32")} == {torch.float32}
    assert checkpoint.table("bfloat16").take([3]).dtype == torch.bfloat16


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_tied_weights_under_both_names_must_be_equal(
    tmp_path: Path, states: dict[str, State], nested: bool, stored: str
) -> None:
    state = states["vlm_checkpoint"]
    other = state[HEAD].to(getattr(torch, stored)).clone()
    stem = JOINT if nested else ""
    if stored == "float32":
        save({stem + name: value for name, value in {**state, TABLE: other}.items()}, tmp_path)
        assert open_vlm(tmp_path)[0].stored[HEAD] == stem + HEAD
    other[257_000, 5] += 1
    save({stem + name: value for name, value in {**state, TABLE: other}.items()}, tmp_path)
    with pytest.raises(BadInputError) as raised:
        open_vlm(tmp_path)
    assert str(raised.value) == (
        f"vlm_checkpoint: {tmp_path}/model.safetensors: {stem}{HEAD} and {stem}{TABLE} are the same weights in this "
        "model, but differ; remove the one that was not trained"
    )


def test_the_experts_own_head_is_unused_and_may_differ(tmp_path: Path) -> None:
    shapes = {**expert_shapes(), JOINT + "gemma_expert.model.embed_tokens.weight": (257152, 32)}
    write_hollow(tmp_path / "model.safetensors", shapes)
    assert open_action_expert(tmp_path)[1] == ActionExpertConfig.tiny()


def test_a_hub_cache_of_links_is_read_and_its_snapshot_found(tmp_path: Path) -> None:
    cache = tmp_path / "models--lab--vlm"
    write_hollow(cache / "blobs" / "0f3a9c", vlm_shapes())
    (cache / "snapshots" / "abc").mkdir(parents=True)
    link = cache / "snapshots" / "abc" / "model.safetensors"
    link.symlink_to("../../blobs/0f3a9c")
    assert open_vlm(link.parent)[0].path == link
    with pytest.raises(BadInputError, match=r"no checkpoint here, but in snapshots/abc below"):
        open_vlm(cache)
    (cache / "blobs" / "0f3a9c").unlink()
    with pytest.raises(BadInputError, match=r"model\.safetensors is a link to a file that is not there; download"):
        open_vlm(link.parent)


def test_one_file_counts_before_shards_beside_it_and_says_so(tmp_path: Path) -> None:
    write_hollow_shards(tmp_path, vlm_shapes())
    assert open_vlm(tmp_path)[0].path.name == INDEX
    write_hollow(tmp_path / "model.safetensors", vlm_shapes())
    checkpoint, _ = open_vlm(tmp_path)
    assert checkpoint.files == (tmp_path / "model.safetensors",)
    assert checkpoint.describe() == f"{INDEX} beside it is not read"
    assert open_vlm(tmp_path / INDEX)[0].path.name == INDEX


def test_a_loader_of_another_model_names_the_files_that_it_reads_first(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model_merged.safetensors"):
        write_hollow(tmp_path / name, {"a": [1]})
    for names in (("model_merged.safetensors", "model.safetensors"), ("model.safetensors",)):
        assert resolve_checkpoint(tmp_path, "joint_checkpoint", names).name == names[0]
    with pytest.raises(BadInputError, match=r"^joint_checkpoint: .*name a directory that holds other\.safetensors"):
        resolve_checkpoint(tmp_path, "joint_checkpoint", ("other.safetensors",))


def _drop(mapping: dict[str, str], folder: Path) -> object:
    (folder / mapping[HEAD]).unlink()
    return mapping


def _twice(mapping: dict[str, str], folder: Path) -> object:
    other = next(file for file in sorted(set(mapping.values())) if file != mapping[HEAD])
    write_hollow(
        folder / other, {name: vlm_shapes()[name] for name in mapping if mapping[name] == other or name == HEAD}
    )
    return mapping


def _text(text: str) -> Callable[[dict[str, str], Path], object]:
    def write(_: dict[str, str], folder: Path) -> object:
        (folder / INDEX).write_text(text)
        return None

    return write


BROKEN_SHARDS: dict[str, tuple[Callable[[dict[str, str], Path], object], str]] = {
    "shard gone": (_drop, r"names shards that are not there: model-0000\d-of-00003\.safetensors; copy them beside it"),
    "tensor twice": (_twice, rf"not in the index: {HEAD} in model-0000"),
    "tensor unlisted": (
        lambda mapping, _: {name: file for name, file in mapping.items() if name != HEAD},
        rf"not in the index: {HEAD} in model-0000",
    ),
    "tensor nowhere": (lambda mapping, _: {**mapping, "x.y": mapping[HEAD]}, "not in its shard: x.y in model-0000"),
    "tensor elsewhere": (
        lambda mapping, _: {**mapping, HEAD: next(f for f in sorted(set(mapping.values())) if f != mapping[HEAD])},
        rf"not in its shard: {HEAD} in model-.*not in the index: {HEAD} in model-",
    ),
    "other folder": (lambda mapping, _: {**mapping, HEAD: "../model-00001-of-00003.safetensors"}, "is not the name of"),
    "absolute": (lambda mapping, _: {**mapping, HEAD: "/etc/x.safetensors"}, "is not the name of"),
    "pickle": (lambda mapping, _: {**mapping, HEAD: "pytorch_model.bin"}, "is not the name of"),
    "number": (lambda mapping, _: {**mapping, HEAD: 3}, "is not the name of"),
    "null": (lambda mapping, _: {**mapping, HEAD: None}, "is not the name of"),
    "control": (lambda mapping, _: {**mapping, HEAD: "a\n.safetensors"}, "is not the name of"),
    "empty": (lambda mapping, _: {}, "names no tensors"),
    "list": (lambda mapping, _: list(mapping), "names no tensors"),
    "no map": (_text("{}"), "it has no weight_map"),
    "no JSON": (_text("{"), "not an index of shards"),
    "no text": (_text(""), "not an index of shards"),
    "null file": (_text("null"), "not an index of shards"),
    "twice named": (_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'), "a name is given twice"),
    "deep": (_text("[" * 100_000), "not an index of shards"),
}


@pytest.mark.parametrize("defect", BROKEN_SHARDS)
def test_shards_that_do_not_fit_their_index_are_refused(tmp_path: Path, defect: str) -> None:
    change, said = BROKEN_SHARDS[defect]
    mapping = change(write_hollow_shards(tmp_path, vlm_shapes()), tmp_path)
    if mapping is not None:
        write_index(tmp_path, mapping)
    with pytest.raises(BadInputError, match=said) as raised:
        open_vlm(tmp_path)
    assert str(raised.value).startswith(f"vlm_checkpoint: {tmp_path}/{INDEX}: ")
    assert str(raised.value).isprintable()


def _folder(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
        return folder

    return make


INSTEAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda folder: folder / "no", r"no: no checkpoint here \(no such file or folder\); name a directory"),
    "an empty folder": (lambda folder: folder, r"no checkpoint here \(found: an empty folder\); name a directory"),
    "other files": (_folder("config.json", "a.txt"), r"no checkpoint here \(found: a\.txt, config\.json\)"),
    "many files": (_folder(*"abcdefgh"), r"\(found: a, b, c, d, e, \.\.\.\)"),
    "steps below": (_folder("1000/model.safetensors", "2000/model.safetensors"), "but in 1000, 2000 below; name a dir"),
    "LeRobot's run": (_folder("last/pretrained_model/model.safetensors"), "but in last/pretrained_model below"),
    "shards below": (_folder(f"1000/{INDEX}"), "but in 1000 below"),
    "an adapter": (_folder("adapter_model.safetensors", "adapter_config.json"), "holds a LoRA adapter .*merge it"),
    "an adapter's file": (
        lambda folder: _folder("adapter_model.safetensors")(folder) / "adapter_model.safetensors",
        "holds a LoRA adapter .*merge it",
    ),
    "a pickle": (_folder("pytorch_model.bin"), "found: pytorch_model.bin.*pickles are never read: save it as model"),
    "starVLA's": (_folder("steps_10000_pytorch_model.pt"), "pickles are never read"),
    "a pickle's file": (lambda folder: _folder("a.pt")(folder) / "a.pt", "pickles are never read"),
    "one shard": (
        lambda folder: _folder(INDEX, "model-00001-of-00002.safetensors")(folder) / "model-00001-of-00002.safetensors",
        "is one shard of several; name its folder",
    ),
    "another file": (lambda folder: _folder("a.json")(folder) / "a.json", r"no checkpoint here \(found: a\.json\)"),
    "a strange name": (_folder("a\x1b[2J\n"), r"found: 'a\\x1b\[2J\\n'"),
    "a long name": (lambda folder: folder / ("x" * 5000), "no checkpoint here"),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("found", INSTEAD)
def test_what_is_there_instead_of_a_checkpoint_is_named(tmp_path: Path, setting: str, found: str) -> None:
    make, said = INSTEAD[found]
    path = make(tmp_path)
    with pytest.raises(BadInputError, match=said) as raised:
        OPEN[setting](path)
    assert str(raised.value).startswith(f"{setting}: {path}: ")
    assert str(raised.value).isprintable()


def _without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


FOREIGN: dict[str, tuple[Callable[[Shapes], Shapes], str]] = {
    "no tensors": (lambda shapes: {}, "found: no tensors"),
    "one tensor": (lambda shapes: {"weight": [2]}, r"found: weight \(1\)"),
    "a stranger beside it": (lambda shapes: {**shapes, "foo.bar": [2]}, r"unknown: foo\.bar$"),
    "a stranger's name": (lambda shapes: {**shapes, "foo\x1b\n": [2]}, r"unknown: 'foo\\x1b\\n'"),
    "half a prefix": (lambda shapes: {**shapes, "model.foo": [2]}, r"unknown: model\.foo$"),
    "stock PaliGemma": (
        lambda shapes: {
            name.replace("paligemma_with_expert.", "").replace("paligemma.", ""): s for name, s in shapes.items()
        },
        "it is not of this model; found: ",
    ),
    "an adapter's weights": (
        lambda shapes: {f"base_model.model.{name}.lora_A.weight": [2, 2] for name in shapes},
        "these are weights of a LoRA adapter: merge it",
    ),
    "an adapter inside": (
        lambda shapes: {**shapes, "paligemma.q_proj.lora_B.default.weight": [2, 2]},
        r"unknown: paligemma\.q_proj\.lora_B.*these are weights of a LoRA adapter: merge it",
    ),
    "no vision": (lambda shapes: _without(shapes, "vision_tower"), "lacks .*vision_tower"),
    "no projector": (lambda shapes: _without(shapes, "multi_modal_projector"), "missing: .*multi_modal_projector"),
    "no head": (lambda shapes: _without(shapes, "paligemma.lm_head"), "missing: .*lm_head"),
    "one layer": (lambda shapes: _without(shapes, "layers.1.mlp"), r"missing: .*layers\.1\.mlp"),
    "other widths": (
        lambda shapes: {name: [7] * len(shape) for name, shape in shapes.items()},
        "has 7 rows; known are",
    ),
    "scalars": (lambda shapes: {name: [] for name in shapes}, "lacks"),
    "two namings": (
        lambda shapes: {**shapes, **{_older(name): shape for name, shape in shapes.items() if "lm_head" in name}},
        "are both .*lm_head.weight; keep one of them",
    ),
    "a small vocabulary": (
        lambda shapes: {name: [256000, *s[1:]] if s[0] == 257152 else s for name, s in shapes.items()},
        r"shape: .*lm_head\.weight \(256000, .*instead of \(257152, ",
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_the_model_is_said_key_by_key(tmp_path: Path, setting: str, kind: str) -> None:
    change, said = FOREIGN[kind]
    file = write_hollow(tmp_path / "model.safetensors", change(SHAPES[setting]()))
    with pytest.raises(BadInputError, match=said) as raised:
        OPEN[setting](tmp_path)
    assert str(raised.value).startswith(f"{setting}: {file}: ")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
def test_weights_that_are_no_floats_are_named(tmp_path: Path, setting: str, dtype: str) -> None:
    write_hollow(tmp_path / "model.safetensors", SHAPES[setting](), dtype)
    with pytest.raises(BadInputError, match=rf"has dtype {dtype}; save the weights as one of F32, BF16, F16, F64"):
        OPEN[setting](tmp_path)


def test_a_vlm_for_an_action_expert_asks_whether_they_are_swapped(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model.safetensors", vlm_shapes())
    with pytest.raises(BadInputError) as raised:
        open_action_expert(tmp_path)
    assert str(raised.value).endswith(
        "found: paligemma.lm_head.* (1), paligemma.model.* (58); "
        "see that vlm_checkpoint and ae_checkpoint are not swapped"
    )


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 3000, -1])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path, setting: str, keep: int) -> None:
    file = write_hollow(tmp_path / "model.safetensors", SHAPES[setting]())
    os.truncate(file, keep if keep >= 0 else file.stat().st_size + keep)
    with pytest.raises(BadInputError, match=r"not a safetensors file \(.*\); copy it again") as raised:
        OPEN[setting](tmp_path)
    assert str(raised.value).startswith(f"{setting}: {file}: ")


def test_a_name_given_twice_in_a_header_is_damage(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw.replace(b'"b"', b'"a"'))
    with pytest.raises(BadInputError, match="a name is given twice"):
        open_vlm(tmp_path)


def test_facts_are_plain_json(tmp_path: Path) -> None:
    write_hollow_shards(tmp_path, {"model." + name: shape for name, shape in vlm_shapes().items()})
    facts: dict[str, Any] = open_vlm(tmp_path)[0].facts
    assert json.loads(json.dumps(facts)) == {
        "path": str(tmp_path / INDEX),
        "dtypes": {"F32": 59},
        "notes": ["names begin with model."],
    }
