"""What a pi0 checkpoint's folder may hold: every tensor under either naming, and refusals that say what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from safetensors.torch import load_file, save_file

from tests.policies.pi0.test_answers import built, configured
from wpray.benchmarks.fake.benchmark import FakeBenchmark
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy, policy_checks
from wpray.testing.policy_requests import first_requests

Tensors = dict[str, torch.Tensor]
EXPERT_TABLE, TABLE = "model.dit.embed_tokens.weight", "model.vlm.language_model.embed_tokens.weight"


@pytest.fixture
def folder(pi0_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pi0_folder, tmp_path / "copy"))


def lerobot_name(name: str) -> str:
    """The name that LeRobot's PI0Policy saves; written out here from its module structure."""
    tables = {EXPERT_TABLE: "gemma_expert.lm_head.weight", TABLE: "paligemma.lm_head.weight"}
    if name in tables:
        return f"model.paligemma_with_expert.{tables[name]}"
    for own, theirs in (
        ("model.dit.", "paligemma_with_expert.gemma_expert.model."),
        ("model.vlm.vision_tower.", "paligemma_with_expert.paligemma.model.vision_tower.vision_model."),
        ("model.vlm.", "paligemma_with_expert.paligemma.model."),
        ("embed_action_time.", ""),
    ):
        if name.startswith(own):
            return f"model.{theirs}{name.removeprefix(own)}"
    return f"model.{name}"


@pytest.mark.parametrize(
    "renamed", [lerobot_name, lambda name: lerobot_name(name).removeprefix("model.")], ids=["saved", "inner"]
)
def test_a_checkpoint_with_lerobots_keys_gives_the_same_bits(
    pi0_folder: Path, folder: Path, renamed: Callable[[str], str]
) -> None:
    _rewrite(folder, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})
    shared = set(load_file(folder / "model.safetensors")) & set(load_file(pi0_folder / "model.safetensors"))
    assert shared <= {"action_out_proj.weight", "action_out_proj.bias"}
    ours, theirs = built(configured(pi0_folder)), built(configured(folder))
    requests: Any = first_requests(ours.spec, ("fake", "auto"), 2, seed=0)
    for one, other in zip(ours.predict(requests), theirs.predict(requests), strict=True):
        assert np.array_equal(one.actions, other.actions)


def _rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda found: {own: found[own] for own in found if own != name})


def _with(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda found: {**found, name: torch.zeros(shape)})


def _edited(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = {**json.loads((folder / file).read_text()), **values}
        (folder / file).write_text(json.dumps({name: value for name, value in data.items() if value is not None}))

    return change


def _removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _written(file: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_text(text)

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("action_out_proj.bias"), r"model\.safetensors: .*missing: action_out_proj\.bias; copy both"),
        (_without(EXPERT_TABLE), f"missing: {re.escape(EXPERT_TABLE)};"),
        (_with("action_out_proj.extra", 3), r"unknown: action_out_proj\.extra;"),
        (_with("action_out_proj.bias", 7), r"shape: action_out_proj\.bias \(7,\) instead of \(32,\)"),
        (_with(lerobot_name(TABLE), 3), r"twice: .*lm_head\.weight"),
        (_edited("config.json", model_type="gemma"), r"its model_type is 'gemma', not 'pi0'; name a folder"),
        (_edited("config.json", chunk_size="many"), r"not a configuration of pi0"),
        (_edited("config.json", max_state_dim=6), r"max_state_dim is 6, and LIBERO needs 8 or more"),
        (
            _edited("processor_config.json", state_mean=None),
            r"has no state_mean; name a file .* policy_args\.statistics",
        ),
        (_edited("processor_config.json", actions_std=[1.0]), r"policy_args\.checkpoint: .*processor_config\.json"),
        (_edited("processor_config.json", image_processor={"size": {"height": 448}}), r"only 224 pixels are supported"),
        *(
            (_edited("processor_config.json", image_processor=odd), said)
            for odd, said in (
                (
                    {"image_std": [0.5, 0.0, 0.5]},
                    r"its image processor has image_mean \[0\.5, 0\.5, 0\.5\], image_std \[0\.5, 0\.0, 0\.5\]",
                ),
                ({"image_mean": [0.5]}, r"its image processor has image_mean \[0\.5\]"),
                ({"rescale_factor": 0}, r"rescale_factor 0\.0, which is no scaling of three channels; name another"),
                ({"do_normalize": False}, r"its image processor has do_normalize False, and only true is supported"),
                ({"image_std": "half"}, r"is not in the form of an image processor"),
                ({"size": 224}, r"is not in the form of an image processor"),
                ("PI0ImageProcessor", r"is not in the form of an image processor"),
            )
        ),
        (_removed("processor_config.json"), r"has no state_mean; name a file"),
        (_removed("tokenizer.json"), r"holds no tokenizer\.json; name the folder of PaliGemma's tokenizer"),
        (_removed("model.safetensors"), r"policy_args\.checkpoint: "),
        (_removed("config.json"), r"config\.json cannot be read"),
        (_written("config.json", "{"), r"config\.json is not JSON"),
        (_written("config.json", "[]"), r"must hold a JSON object"),
        (_written("tokenizer.json", "{}"), r"is no tokenizer\.json"),
    ],
)
def test_a_wrong_folder_is_refused_by_what_is_wrong(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    with pytest.raises(BadInputError, match=said) as caught:
        build_policy(configured(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"execute_steps": 9}, r"execute_steps: 9 is more than the 8 actions of a chunk"),
        ({"checkpoint": "no/such-model"}, r"no folder here, and the hub's cache does not hold it; download it"),
        ({"checkpoint": "./nothing here"}, r"no folder here, and no name on the hub"),
        ({"cameras": ["base", "base"]}, r"policy_args\.cameras: names a camera twice"),
        ({"chekpoint": "x"}, r"did you mean policy_args\.checkpoint\?"),
        ({"statistics": "nowhere.json"}, r"policy_args\.statistics: nowhere\.json cannot be read"),
        ({"tokenizer": "nowhere"}, r"policy_args\.tokenizer: nowhere holds no tokenizer\.json"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    pi0_folder: Path, args: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInputError, match=said):
        build_policy(configured(pi0_folder, **args))


def test_a_name_on_the_hub_is_read_from_the_cache(
    pi0_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--lab--pi0"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = Path(shutil.copytree(pi0_folder, repository / "snapshots" / commit))
    for args in ({}, {"revision": commit}):
        assert snapshot / "model.safetensors" in built(configured(Path("lab/pi0"), **args)).files
    with pytest.raises(BadInputError, match="cache does not hold it"):
        build_policy(configured(Path("lab/pi0"), revision="v2"))


def test_statistics_of_another_file_count_before_the_processors(pi0_folder: Path, folder: Path, tmp_path: Path) -> None:
    processor = json.loads((folder / "processor_config.json").read_text())
    names = {"state": "state", "actions": "actions"}
    stats = {own: {name: processor[f"{own}_{name}"] for name in ("mean", "std")} for own in names}
    (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": stats}))
    _edited("processor_config.json", state_mean=[0.0] * 8, actions_mean=[9.0] * 7)(folder)
    policy = built(configured(folder, statistics=str(tmp_path / "norm_stats.json")))
    plain = built(configured(pi0_folder))
    requests: Any = first_requests(plain.spec, ("fake", "auto"), 1, seed=0)
    assert np.array_equal(policy.predict(requests)[0].actions, plain.predict(requests)[0].actions)
    assert tmp_path / "norm_stats.json" in policy.files


class Kitchen(FakeBenchmark):
    """The fake benchmark, whose training data have a name of their own."""

    def fits_data_set(self, suite: str, data_set: str) -> bool:
        return data_set == "pantry"


def _statistics(folder: Path, *names: str) -> str:
    """Write a file with the same statistics under each name; return its path."""
    processor = json.loads((folder / "processor_config.json").read_text())
    own = {name: {kind: processor[f"{name}_{kind}"] for kind in ("mean", "std")} for name in ("state", "actions")}
    (folder / "statistics.json").write_text(json.dumps(dict.fromkeys(names, own)))
    return str(folder / "statistics.json")


@pytest.mark.parametrize(
    ("suite", "benchmark", "names", "said"),
    [
        ("libero_goal", "auto", ["libero_goal_no_noops", "libero_10_no_noops"], "data set libero_goal_no_noops"),
        ("libero_plus_goal_camera", "auto", ["libero_goal", "libero_10"], "data set libero_goal"),
        ("fake", "tests.policies.pi0.test_checkpoint:Kitchen", ["pantry"], "data set pantry"),
        (
            *("fake", "tests.policies.pi0.test_checkpoint:Kitchen", ["kitchen_demos"]),
            "data set kitchen_demos, which is not named after fake: "
            "policy_args.statistics_key confirms it or names another",
        ),
    ],
)
def test_the_data_set_is_chosen_as_the_benchmark_names_them(
    folder: Path, suite: str, benchmark: str, names: list[str], said: str
) -> None:
    config = configured(folder, statistics=_statistics(folder, *names))
    policy = built(config.model_copy(update={"task_suite": suite, "benchmark": benchmark}))
    assert policy.sources.lines[1] == f"policy_args.statistics: {folder}/statistics.json: {said}"


def test_several_data_sets_are_refused_by_this_policys_settings(folder: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"^policy_args\.statistics: .*; set policy_args\.statistics_key to the one"
    ):
        build_policy(configured(folder, statistics=_statistics(folder, "one", "other")))


def test_the_doctor_checks_the_folder(pi0_folder: Path, folder: Path) -> None:
    checkpoint, tensors = policy_checks(configured(pi0_folder))
    assert (checkpoint.quick, tensors.quick, tensors.needs) == (True, False, {"checkpoint"})
    (files,), (model,) = checkpoint.check(), tensors.check()
    assert (files.status, model.status) == ("pass", "pass")
    assert str(pi0_folder) in files.text and "chunks of 8 actions, 3 steps" in model.text
    _without("action_out_proj.bias")(folder)
    checks = {check.name: check for check in policy_checks(configured(folder))}
    assert checks["checkpoint"].check()[0].status == "pass"
    with pytest.raises(BadInputError, match=r"missing: action_out_proj\.bias"):
        checks["tensors"].check()


def test_files_and_sources_name_what_decides(pi0_folder: Path) -> None:
    policy = built(configured(pi0_folder))
    names = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json"}
    assert set(policy.files) == {pi0_folder / name for name in names}
    facts = policy.sources.facts["pi0"]
    assert (facts["chunk_size"], facts["num_inference_steps"], facts["precision"]) == (8, 3, "float32")
    assert facts["statistics"]["path"] == str(pi0_folder / "processor_config.json")
