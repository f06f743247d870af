"""LoRA adapters beside a base model: against plain formulas, and against models that have been merged by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_weights import (
    EMBEDDING,
    adapted_modules,
    block_size,
    joint_size,
    merge_adapter,
    save,
    state_dict,
    write_adapted,
    write_checkpoints,
)
from wpray.errors import BadInputError
from wpray.models.adapters import AdapterSettings, _expected, check_ema
from wpray.models.config import ActionExpertConfig, Precision, action_expert_manifest
from wpray.models.layouts import ModelFiles, ModelSettings, open_models
from wpray.models.loading import Computing, load
from wpray.models.lora import AdaptedTable, AdaptedWeight, Adapter, project
from wpray.models.stored_table import StoredTable
from wpray.models.vlm import _Choice

DATA = Path(__file__).parents[1] / "data" / "golden_joint"
RANK, ALPHA = 4, 6.0  # a scale of 1.5, which rounds
SIZES = {"a": joint_size("a"), "b": joint_size("b"), "block": block_size()}


def given_of(folder: Path, **changes: Any) -> ModelSettings:
    settings = AdapterSettings(str(folder / "base"), RANK, ALPHA, **changes)
    return ModelSettings(
        None, str(folder / "run"), None, "model", 6, DATA / "dataset_statistics.json", adapter=settings
    )


def answers(
    files: ModelFiles, precision: Precision, head: Precision = "float32", device: str = "cpu", graphs: bool = False
) -> dict[str, Tensor]:
    """Return what the models compute of recorded inputs, while recorded tokens are fed."""
    with np.load(DATA / "golden_b.npz") as data:
        golden = dict(data)
    how = Computing(precision, precision, head, graphs=graphs, device=torch.device(device))
    planner, expert = load(files, golden["vlm_header"].tolist(), how)
    images = torch.from_numpy(np.stack([golden["images_base"], golden["images_wrist"]], axis=1)[:1])
    prompts = [golden["vlm_prompt_0"].tolist()]
    free = planner.plan(images, prompts)
    given = [torch.from_numpy(golden[f"ae_{name}"][:1]) for name in ("start", "end", "duration", "noise")]
    actions = expert.act(images, [golden["ae_prompt_tokens"][0][golden["ae_prompt_mask"][0]].tolist()], *given)
    found = {"tokens": free.values, "features": free.features, "actions": actions}
    if graphs:  # which replay no collecting of hidden states
        return found
    planner.hidden = []
    planner.plan(images, prompts, forced=torch.from_numpy(planner.layout.decode(golden["vlm_tokens_float32"]))[:1])
    hidden = torch.cat(planner.hidden, dim=1)
    scores = torch.cat([planner._scores(hidden[:, -1], choice) for choice in planner._choices], dim=1)
    return {**found, "hidden": hidden, "scores": scores}


@pytest.fixture(scope="module", params=["a", "b", "block"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """folder/{base,run}: float32 weights, the image encoder adapted, too."""
    folder = tmp_path_factory.mktemp("adapted")
    write_adapted(folder, SIZES[request.param], vision=True)
    return folder, request.param


def plainly_merged(folder: Path, size: ActionExpertConfig, precision: Precision) -> ModelSettings:
    """Merge by hand what the tensors are in a precision."""
    manifest = action_expert_manifest(size, precision)
    tensors = {**state_dict(action_expert_manifest(size, "float32"), 0), **load_file(folder / "run/lora.safetensors")}
    kinds = {name: getattr(torch, kind) for name, (_, kind) in manifest.items()}
    low_rank = {name: own for name, own in tensors.items() if ".lora_" in name}
    kinds |= {name: kinds.get(f"{name.split('.lora_')[0]}.weight", getattr(torch, precision)) for name in low_rank}
    cast = {name: own.to(kinds[name]) for name, own in tensors.items()}
    base = {name: own for name, own in cast.items() if name not in low_rank}
    save(merge_adapter(base, cast, ALPHA / RANK), folder / f"merged_{precision}")
    return ModelSettings(None, str(folder / f"merged_{precision}"), None, "model", 6, DATA / "dataset_statistics.json")


@pytest.mark.parametrize("slim", [True, False])
def test_an_active_adapter_computes_in_float32_what_a_merged_model_does(adapted: tuple[Path, str], slim: bool) -> None:
    folder, name = adapted
    active = open_models(given_of(folder, vision="lora", slim=slim))
    assert active.facts["adapter"] == "active"
    ours = answers(active, "float32")
    theirs = answers(open_models(plainly_merged(folder, SIZES[name], "float32")), "float32")
    assert torch.equal(ours["tokens"], theirs["tokens"])
    for part, tolerance in (("features", 1e-4), ("hidden", 5e-4), ("actions", 1e-3), ("scores", 1e-3)):
        torch.testing.assert_close(ours[part], theirs[part], atol=tolerance, rtol=0)
    plain = answers(open_models(replace(given_of(folder), adapter=None, joint=_base_alone(folder, name))), "float32")
    assert (ours["hidden"] - plain["hidden"]).abs().max() > 0.1  # the adapter matters


def _base_alone(folder: Path, name: str) -> str:
    save(state_dict(action_expert_manifest(SIZES[name], "float32"), 0), folder / "alone")
    return str(folder / "alone")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_merged_adapter_is_the_model_merged_by_hand_to_the_bit(
    adapted: tuple[Path, str], precision: Precision
) -> None:
    folder, name = adapted
    merged = open_models(given_of(folder, vision="lora", merge=True))
    assert merged.facts["adapter"] == "merged"
    by_hand = open_models(plainly_merged(folder, SIZES[name], precision))
    found, expected = (dict(files.expert.tensors(torch.device("cpu"), precision)) for files in (merged, by_hand))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[own]) for own, tensor in found.items())
    ids = [*range(0, 257_000, 997), *merged.tokens.bins.ids, merged.tokens.waypoint]
    assert torch.equal(merged.expert.table(precision).take(ids), by_hand.expert.table(precision).take(ids))


def test_what_a_merged_adapter_computes_is_the_merged_models(adapted: tuple[Path, str]) -> None:
    folder, name = adapted
    ours = answers(open_models(given_of(folder, vision="lora", merge=True)), "bfloat16", "bfloat16")
    theirs = answers(open_models(plainly_merged(folder, SIZES[name], "bfloat16")), "bfloat16", "bfloat16")
    for part, own in ours.items():
        assert torch.equal(own, theirs[part]), part


def test_active_and_merged_differ_in_bits(adapted: tuple[Path, str]) -> None:
    folder = adapted[0]
    active, merged, plain = (
        answers(open_models(given_of(folder, vision="lora", **changes)), "bfloat16", "bfloat16")
        for changes in ({}, {"merge": True}, {"slim": False})
    )
    for other in (merged, plain):
        assert not torch.equal(active["hidden"], other["hidden"])
        error = (active["actions"] - other["actions"]).norm() / active["actions"].norm()
        assert error < 0.2


@pytest.mark.gpu
def test_an_active_adapter_computes_on_a_gpu_what_it_does_on_a_processor(adapted: tuple[Path, str]) -> None:
    files = open_models(given_of(adapted[0], vision="lora"))
    here, there, captured = (
        answers(files, "float32", device=device, graphs=graphs)
        for device, graphs in (("cpu", False), ("cuda", False), ("cuda", True))
    )
    for part, tolerance in (("features", 1e-3), ("hidden", 5e-3), ("actions", 5e-3)):
        torch.testing.assert_close(there[part].cpu(), here[part], atol=tolerance, rtol=0)
    for part, own in captured.items():
        assert torch.equal(own, there[part]), part


def _round(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).float()


def test_a_linear_layer_rounds_after_every_product() -> None:
    """y = W x + (B (A x)) s: each term rounded to bfloat16, here by hand from float64 sums."""
    generator = torch.Generator().manual_seed(0)
    base, low, high, x = (
        torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in ((24, 64), (4, 64), (8, 4), (5, 64))
    )
    wide = [tensor.double() for tensor in (base, low, high, x)]
    inner = _round((wide[3] @ wide[1].T).float()).double()
    delta = _round(_round((inner @ wide[2].T).float()) * 1.5)
    expected = _round((wide[3] @ wide[0].T).float())
    expected[:, 8:16] = _round(expected[:, 8:16] + delta)
    weight = AdaptedWeight(base, (None, Adapter(low, high, 1.5), None), (8, 8, 8))
    assert torch.equal(project(x, weight).float(), expected)


def _table(tmp_path: Path) -> tuple[StoredTable, StoredTable, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "table": torch.randn((40, 32), generator=generator).to(torch.bfloat16),
        "low": torch.randn((40, 4), generator=generator).to(torch.bfloat16),
        "high": torch.randn((4, 32), generator=generator).to(torch.bfloat16),
    }
    save(tensors, tmp_path)
    file = tmp_path / "model.safetensors"
    table, low = (StoredTable(file, name, torch.bfloat16) for name in ("table", "low"))
    return table, low, tensors["high"], tensors


def test_an_embedding_is_its_row_and_the_adapters(tmp_path: Path) -> None:
    table, low, high, tensors = _table(tmp_path)
    ids = [3, 39, 3, 0]
    wide = {name: own.double() for name, own in tensors.items()}
    product = _round((wide["low"][ids] @ wide["high"]).float())
    expected = _round(wide["table"][ids].float() + _round(product * 1.5))
    assert torch.equal(AdaptedTable(table, low, high, 1.5, merge=False).take(ids).float(), expected)
    delta = _round((wide["low"][ids] @ wide["high"]).float() * 1.5)
    merged = _round(wide["table"][ids].float() + delta)
    assert torch.equal(AdaptedTable(table, low, high, 1.5, merge=True).take(ids).float(), merged)


def test_active_logits_are_two_products_that_are_rounded(tmp_path: Path, adapted: tuple[Path, str]) -> None:
    """bf16(h W^T + ((h B^T) A^T) s), each product in bfloat16."""
    table, low, high, tensors = _table(tmp_path)
    ids = [7, 6, 5]
    rows, adapter = AdaptedTable(table, low, high, 1.5, merge=False).scoring(ids)
    assert adapter is not None
    assert torch.equal(rows, tensors["table"][ids])
    hidden = torch.randn((2, 32), generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    with np.load(DATA / "golden_b.npz") as data:
        header = data["vlm_header"].tolist()
    how = Computing("bfloat16", "bfloat16", "bfloat16", graphs=False, device=torch.device("cpu"))
    planner = load(open_models(given_of(adapted[0], vision="lora")), header, how)[0]
    ours = planner._scores(hidden, _Choice(rows.float(), adapter, rows))
    wide = {name: own.double() for name, own in tensors.items()}
    inner = _round((hidden.double() @ wide["high"].T).float()).double()
    added = _round(_round((inner @ wide["low"][ids].T).float()) * 1.5)
    expected = _round(_round((hidden.double() @ wide["table"][ids].T).float()) + added)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("changes", "gemmas", "embeds", "count"),
    [
        ({}, (".language_model.", ".gemma_expert."), True, 2 * 2 * 7 + 5),
        ({"vision": "lora"}, (".language_model.", ".gemma_expert."), True, 2 * 2 * 7 + 5 + 2 * 6),
        ({"apply_to": "backbone_only"}, (".language_model.",), True, 2 * 7),
        ({"apply_to": "expert_only"}, (".gemma_expert.",), False, 2 * 7 + 5),
    ],
)
def test_the_layers_that_are_adapted_are_those_of_the_specification(
    changes: dict[str, Any], gemmas: tuple[str, ...], embeds: bool, count: int
) -> None:
    manifest = action_expert_manifest(block_size(), "float32")
    modules = adapted_modules(list(manifest), gemmas, vision="vision" in changes)
    assert len(modules) == count
    expected = {f"{module}.lora_{part}.weight" for module in modules for part in "AB"}
    expected |= {f"{EMBEDDING}.lora_embedding_{part}" for part in "AB"} if embeds else set()
    assert dict(_expected(AdapterSettings("", 4, 4, **changes), manifest)).keys() == expected


def test_an_adapter_of_full_size_has_as_many_numbers_as_its_trainer_wrote() -> None:
    """Rank 16, everything adapted: 101.8 MB in bfloat16, what is trained in full included."""
    size = replace(ActionExpertConfig.full(), duration_embed=True)
    manifest = action_expert_manifest(size, "bfloat16")
    expected = dict(_expected(AdapterSettings("", 16, 16, vision="lora"), manifest))
    dense = sum(".dense.lora_A" in name for name in expected)
    assert dense == 37
    numbers = sum(int(np.prod(shape)) for shape in expected.values())
    assert 2 * numbers == pytest.approx(101.8e6, rel=0.2)


def test_an_adapter_that_is_not_of_its_settings_is_refused_by_its_tensors(tmp_path: Path) -> None:
    tensors = write_adapted(tmp_path, SIZES["block"])
    module = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    one = torch.zeros(2)
    for state, changes, said in (
        ({**tensors, module: torch.zeros(8, 64)}, {}, f"shape: {module} (8, 64) instead of (4, 64)"),
        ({name: own for name, own in tensors.items() if name != module}, {}, f"missing: {module}"),
        ({name: own for name, own in tensors.items() if "proprio" not in name}, {}, "missing: proprio_encoder"),
        ({name: own for name, own in tensors.items() if "action_in" not in name}, {}, "missing: action_in_proj"),
        ({**tensors, "x.lora_A.weight": one}, {}, "unknown: x.lora_A.weight"),
        ({**tensors, "goal_encoder.out.bias": one}, {}, "unknown: goal_encoder.out.bias"),
        (tensors, {"apply_to": "backbone_only"}, "unknown: paligemma_with_expert.gemma_expert."),
        (tensors, {"vision": "lora"}, "missing: paligemma_with_expert.paligemma.model.vision_tower"),
        (tensors, {"vision": "full"}, "missing: paligemma_with_expert.paligemma.model.vision_tower"),
        (
            {name: own for name, own in tensors.items() if ".lora_" not in name},
            {},
            "holds no weights of a LoRA adapter",
        ),
    ):
        save(state, tmp_path / "run", "lora.safetensors")
        with pytest.raises(BadInputError) as raised:
            open_models(given_of(tmp_path, **changes))
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    save(tensors, tmp_path / "run", "lora.safetensors")
    with pytest.raises(BadInputError, match=r"lora_rank 8.*\(4, 64\) instead of \(8, 64\)"):
        open_models(replace(given_of(tmp_path), adapter=AdapterSettings(str(tmp_path / "base"), 8, 8)))
    with pytest.raises(BadInputError, match=r"pretrained_weight_path: .*no such file or folder"):
        open_models(replace(given_of(tmp_path), adapter=AdapterSettings(str(tmp_path / "nowhere"), 4, 4)))


def test_of_several_files_the_settings_choose_and_the_other_is_named(tmp_path: Path) -> None:
    write_adapted(tmp_path, SIZES["b"])
    run, raw = tmp_path / "run", tmp_path / "run" / "lora.safetensors"
    given = given_of(tmp_path)
    assert open_models(given).chosen[0].reason == "lora_enabled: true"
    whole = replace(given, adapter=None)
    with pytest.raises(BadInputError, match="set lora_enabled: true, with pretrained_weight_path and lora_alpha"):
        open_models(whole)
    save(state_dict(action_expert_manifest(SIZES["b"], "float32"), 0), run)
    found = open_models(given)
    assert (found.chosen[0].path, found.chosen[0].passed_over) == (raw, run / "model.safetensors")
    assert found.files == (raw, tmp_path / "base" / "model.safetensors")
    plain = open_models(whole).chosen[0]
    assert (plain.path, plain.reason, plain.passed_over) == (run / "model.safetensors", "lora_enabled: false", raw)
    raw.unlink()
    merged = open_models(given)
    assert "holds merged weights" in merged.warnings[0]
    assert "adapter" not in merged.facts
    with pytest.raises(BadInputError, match=r"has no lora_ema\.safetensors, which use_ema needs"):
        open_models(given_of(tmp_path, ema=True))


def test_averaged_weights_are_read_with_their_metadata_alone(tmp_path: Path) -> None:
    write_adapted(tmp_path, SIZES["b"], file="lora_ema.safetensors", seed=2)
    given = given_of(tmp_path, ema=True)
    with pytest.raises(BadInputError, match=r"has no lora\.safetensors, which use_ema needs"):
        open_models(given)
    write_adapted(tmp_path, SIZES["b"])
    with pytest.raises(BadInputError, match="does not say global_step, ema_decay, ema_warmup_steps"):
        open_models(given)
    metadata = {"global_step": 5000, "ema_decay": 0.999, "ema_warmup_steps": 0}
    torch.save(metadata, tmp_path / "run" / "metadata.pt")
    found = open_models(given)
    assert found.warnings == ()
    assert found.chosen[0].path.name == "lora_ema.safetensors"
    assert found.expert.facts["adapter"]["weights"] == "ema"
    raw = open_models(given_of(tmp_path))
    averaged, own = (dict(files.expert.tensors(torch.device("cpu"), "float32")) for files in (found, raw))
    assert not torch.equal(averaged["action_in_proj.bias"], own["action_in_proj.bias"])


@pytest.mark.parametrize(
    ("step", "decay", "warm_up", "outcome"),
    [
        (100, 0.99, 100, None),  # nothing is kept: the average began with the last step
        (1000, 0.99, 100, None),
        (300, 0.99, 100, "13% of the average"),
        (168, 0.99, 100, "50% of the average"),  # 0.5049: too much
        (170, 0.99, 100, "49% of the average"),
        (110, 0.99, 100, "90% of the average"),
    ],
)
def test_a_stale_average_is_refused_or_warned_of(step: int, decay: float, warm_up: int, outcome: str | None) -> None:
    metadata = {"global_step": step, "ema_decay": decay, "ema_warmup_steps": warm_up}
    settings = AdapterSettings("", 4, 4, ema=True)
    kept = 0 if step <= warm_up else decay ** (step - warm_up)
    if kept > 0.5:
        with pytest.raises(BadInputError, match=f"{outcome}.*allow_stale_ema_forensics"):
            check_ema(metadata, settings, "use_ema")
        assert outcome in str(check_ema(metadata, replace(settings, allow_stale=True), "use_ema"))
        return
    said = check_ema(metadata, settings, "use_ema")
    assert said is None if outcome is None else outcome in str(said)


def test_a_pair_and_a_lone_adapter_stay_what_they_were(tmp_path: Path) -> None:
    write_checkpoints(tmp_path)
    given = ModelSettings((str(tmp_path / "vlm"), str(tmp_path / "ae")), None, None, "model", 8, tmp_path)
    assert open_models(given).expert.adapter is None
