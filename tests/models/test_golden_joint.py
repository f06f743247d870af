"""Joint models compute the reference's function: its recorded numbers at a tiny size, of both variants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.tiny_weights import Variant, joint_size, write_joint
from wpray.models.action_expert import ActionExpert, _sincos
from wpray.models.batch_parts import BatchShape
from wpray.models.checkpoint import open_joint
from wpray.models.config import Precision, action_expert_manifest
from wpray.models.loading import Computing, joint_models
from wpray.models.token_layout import BINS300
from wpray.models.vlm import WaypointVLM

DATA = Path(__file__).parents[1] / "data" / "golden_joint"
CPU = torch.device("cpu")
VARIANTS: tuple[Variant, ...] = ("a", "b")
# Recorded: after the prompt, after each header token, after each generated one; the last duration is never fed.
FED = slice(1, 73)

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/{a,b}_{float32,bfloat16}: checkpoints as training saves them in either precision."""
    folder = tmp_path_factory.mktemp("stored")
    for variant in VARIANTS:
        write_joint(folder / f"{variant}_float32", variant, "float32")
        write_joint(folder / f"{variant}_bfloat16", variant, "bfloat16")
    return folder


def _golden(variant: Variant) -> Golden:
    with np.load(DATA / f"golden_{variant}.npz") as data:
        return dict(data)


def _models(
    path: Path, golden: Golden, precision: Precision = "float32", head: Precision = "float32"
) -> tuple[WaypointVLM, ActionExpert]:
    checkpoint, config = open_joint(path)
    how = Computing(precision, precision, head, graphs=False, device=CPU)
    weights, table = dict(checkpoint.tensors(CPU, precision)), checkpoint.table(precision)
    return joint_models(weights, table, config, BINS300, golden["vlm_header"].tolist(), how)


def _images(golden: Golden, rows: Sequence[int]) -> torch.Tensor:
    both = np.stack([golden["images_base"], golden["images_wrist"]], axis=1)
    return torch.from_numpy(both[list(rows)])


def _prompts(golden: Golden, rows: Sequence[int]) -> list[list[int]]:
    return [golden[f"vlm_prompt_{row}"].tolist() for row in rows]


def _act(model: ActionExpert, golden: Golden, rows: list[int], seen: torch.Tensor, *shape: BatchShape) -> np.ndarray:
    prompts = [golden["ae_prompt_tokens"][row][golden["ae_prompt_mask"][row]].tolist() for row in rows]
    given = [torch.from_numpy(golden[f"ae_{name}"][rows]) for name in ("start", "end", "duration", "noise")]
    return model.act(seen, prompts, *given, *shape).numpy()


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_layout_is_the_recorded_one(variant: Variant, precision: Precision) -> None:
    suffix = "" if precision == "float32" else "_bf16"
    recorded = json.loads((DATA / f"manifest_{variant}{suffix}.json").read_text())
    ours = action_expert_manifest(joint_size(variant), precision)
    assert {key: [list(shape), dtype] for key, (shape, dtype) in ours.items()} == recorded


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_tokens_are_exact_alone_in_a_batch_and_in_parts(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    model = _models(stored / f"{variant}_float32", golden)[0]
    expected = golden["vlm_tokens_float32"]
    cases = [([row], None) for row in range(3)] + [([2, 0, 1, 1, 0], None)]
    parts = [([2, 0, 1, 1, 0], BatchShape((1, 2), 8)), ([1], BatchShape((2,), 8)), ([0, 2, 1], BatchShape((4,), 4))]
    for rows, shape in [*cases, *parts]:
        output = model.plan(_images(golden, rows), _prompts(golden, rows), shape=shape)
        assert np.array_equal(BINS300.encode(output.values.numpy()), expected[rows])
        assert torch.equal(output.durations, output.values[..., -1])


def _hidden(path: Path, golden: Golden, precision: Precision, forced: str) -> np.ndarray:
    """(3, 72, 64) hidden states while feeding the golden tokens of precision `forced`."""
    model = _models(path, golden, precision)[0]
    model.hidden = []
    tokens = torch.from_numpy(BINS300.decode(golden[f"vlm_tokens_{forced}"]))
    model.plan(_images(golden, range(3)), _prompts(golden, range(3)), forced=tokens)
    return torch.cat(model.hidden, dim=1).float().numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_hidden_states_agree(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    ours = _hidden(stored / f"{variant}_float32", golden, "float32", "float32")
    theirs = golden["vlm_last_hidden_float32"][:, FED]
    assert np.abs(ours - theirs).max() < 5e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", ["float32", "bfloat16"])
def test_bfloat16_hidden_states_agree_better_than_rounding_allows(stored: Path, variant: Variant, file: str) -> None:
    """The reference's own rounding moves its states; ours must be nearer to it than that."""
    golden = _golden(variant)
    theirs = golden["vlm_last_hidden_bfloat16"][:, FED]
    exact = _hidden(stored / f"{variant}_float32", golden, "float32", "bfloat16")
    ours = _hidden(stored / f"{variant}_{file}", golden, "bfloat16", "bfloat16")
    for row in range(3):
        assert _error(ours[row], theirs[row]) < _error(exact[row], theirs[row])


def _chosen(model: WaypointVLM, hidden: np.ndarray) -> np.ndarray:
    """(3, 70) ids that the head chooses at each place from recorded hidden states (3, 74, 64)."""
    ids = np.tile([BINS300.waypoint, *[0] * 7, BINS300.duration, 0], (3, 7))
    states = torch.from_numpy(hidden).to(torch.bfloat16)
    places = [slot for slot in range(BINS300.tokens_per_waypoint) if slot not in (0, 8)]
    for waypoint in range(7):
        for choice, family, slot in zip(model._choices, BINS300.families, places, strict=True):
            place = 10 * waypoint + slot
            scores = model._scores(states[:, 3 + place], choice)
            values = scores.shape[1] - 1 - scores.flip(-1).argmax(-1)
            ids[:, place] = family.ids_of(values.numpy())
    return ids


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_head_chooses_the_recorded_tokens_from_the_recorded_states(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    model = _models(stored / f"{variant}_bfloat16", golden, "bfloat16", "bfloat16")[0]
    assert np.array_equal(_chosen(model, golden["vlm_last_hidden_bfloat16"]), golden["vlm_tokens_bfloat16"])


def test_a_float32_head_chooses_what_the_branch_with_one_recorded(stored: Path) -> None:
    """Up to where the plans part, the states are those of the other branch; a sample has plans that differ."""
    golden = _golden("a")
    model = _models(stored / "a_bfloat16", golden, "bfloat16", "float32")[0]
    ours, theirs = _chosen(model, golden["vlm_last_hidden_bfloat16"]), golden["vlm_tokens_bfloat16_head32"]
    parted = 0
    for row, other in enumerate(golden["vlm_tokens_bfloat16"]):
        differing = np.flatnonzero(other != theirs[row])
        known = slice(0, differing[0] + 1 if len(differing) else None)
        assert np.array_equal(ours[row][known], theirs[row][known])
        parted += len(differing) > 0
    assert parted > 0


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_image_features_agree_and_are_the_plans(
    stored: Path, variant: Variant, precision: Precision, tolerance: float
) -> None:
    golden = _golden(variant)
    model = _models(stored / f"{variant}_float32", golden, precision)[0]
    features = model.plan(_images(golden, [0]), _prompts(golden, [0])).features
    assert features.shape == (1, 512, 64)
    assert _error(features[:, :256].float().numpy(), golden[f"image_features_{precision}"]) < tolerance


@pytest.mark.parametrize(
    ("file", "precision", "tolerance"),
    [("float32", "float32", 1e-4), ("float32", "bfloat16", 5e-2), ("bfloat16", "bfloat16", 5e-2)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_actions_agree_alone_in_a_batch_and_from_the_plans_features(
    stored: Path, variant: Variant, file: str, precision: Precision, tolerance: float
) -> None:
    golden = _golden(variant)
    planner, expert = _models(stored / f"{variant}_{file}", golden, precision)
    assert planner.backbone is expert.backbone
    expected = golden[f"ae_actions_{precision}"]
    shapes = [([0], BatchShape((1,), 1)), ([2, 0, 1], BatchShape((1, 2), 8)), ([0, 1, 2], BatchShape((4,), 8))]
    for rows, shape in shapes:
        features = planner.plan(_images(golden, rows), _prompts(golden, rows), shape=shape).features
        ours = _act(expert, golden, rows, _images(golden, rows), shape)
        assert np.array_equal(ours, _act(expert, golden, rows, features, shape))
        for index, row in enumerate(rows):
            error = np.abs(ours[index] - expected[row]).max()
            assert (error if precision == "float32" else _error(ours[index], expected[row])) < tolerance


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_suffix_starts_with_the_recorded_rows(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    expert = _models(stored / f"{variant}_float32", golden)[1]
    start, end, noise = (torch.from_numpy(golden[f"ae_{name}"]) for name in ("start", "end", "noise"))
    duration = torch.from_numpy(golden["ae_duration"]).long()
    rows = torch.cat([expert._ahead_rows(start, end, duration), expert._apply("action_in_proj", noise[:, :2])], dim=1)
    assert np.abs(rows.numpy() - golden["ae_suffix_float32"]).max() < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_condition_is_the_recorded_one(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    expert = _models(stored / f"{variant}_float32", golden)[1]
    width = expert.config.expert.width
    parts = [_sincos(torch.ones(3, dtype=torch.float64), width)]
    if variant == "a":
        parts.append(_sincos(torch.from_numpy(golden["ae_duration"]).double() / 33, width))
    hidden = F.silu(expert._apply("time_mlp_in", torch.cat(parts, dim=-1)))
    condition = F.silu(expert._apply("time_mlp_out", hidden))
    assert np.abs(condition.numpy() - golden["ae_condition_float32"]).max() < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_flows_times_are_the_recorded_ones(stored: Path, variant: Variant) -> None:
    golden = _golden(variant)
    assert _models(stored / f"{variant}_float32", golden)[1].times() == golden["ae_times"].tolist()
