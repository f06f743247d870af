"""On a GPU: kernels against their torch twins, graphs against eager, batches against single requests, at full size."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from wpray.models import gemma, loading, ops
from wpray.models.batch_parts import BatchShape
from wpray.models.config import (
    ActionExpertConfig,
    BlockPlannerConfig,
    Precision,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.models.gemma import Modulation
from wpray.models.loading import Computing
from wpray.models.sampling import Sampling
from wpray.models.token_layout import BINS256, BINS300
from wpray.models.vlm import WaypointVLM

pytestmark = pytest.mark.gpu
HEADER = (4022, 235292, 235248)
PROMPTS = [list(range(2, 2 + length)) for length in (56, 40, 63, 50, 45)]


@pytest.fixture(autouse=True)
def _empty_gpu() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("rows", [1, 2, 8, 16])
@pytest.mark.parametrize(("width", "mlp"), [(2048, 16384), (1024, 4096)])
def test_a_feed_forward_is_that_of_torch(rows: int, width: int, mlp: int) -> None:
    x, gate_up, down = (
        _random(rows, 1, width),
        _random(2 * mlp, width, seed=1) * 0.02,
        _random(width, mlp, seed=2) * 0.02,
    )
    ours, theirs = ops.feed_forward(x, gate_up, down), gemma.feed_forward(x.float(), gate_up.float(), down.float())
    assert _error(ours, theirs) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_and_attention_are_those_of_torch(dtype: torch.dtype) -> None:
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    x, branch, scale = (
        _random(3, 34, 1024, dtype=dtype),
        _random(3, 34, 1024, dtype=dtype, seed=1),
        _random(1024).float(),
    )
    total, normed = ops.add_norm(x, branch, scale)
    assert torch.equal(total, x + branch)
    assert _error(normed, gemma.rms_norm(x + branch, scale)) < tolerance
    modulation = Modulation(*(_random(3, 1024, dtype=torch.float32, seed=seed) for seed in (2, 3, 4)))
    total, normed = ops.add_adaptive_norm(x, branch, modulation.gate, modulation)
    expected = (x.float() + branch.float() * modulation.gate[:, None]).to(dtype)
    assert _error(total, expected) < tolerance
    assert _error(normed, gemma.adaptive_norm(expected, modulation)) < tolerance
    q, kv = _random(3, 34, 8, 256, dtype=dtype), _random(3, 610, 512, dtype=dtype, seed=5)
    bias = gemma.bias_of(_random(3, 34, 610, dtype=torch.float32, seed=6) > 0)
    assert _error(ops.attend(q, kv, bias), gemma.attend(q, kv, bias)) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "tokens", "slots", "cursor"), [(1, 1, 608, 550), (8, 2, 656, 639), (32, 1, 648, 647)]
)
def test_attention_of_new_tokens_is_that_of_torch(
    dtype: torch.dtype, batch: int, tokens: int, slots: int, cursor: int
) -> None:
    config = VlmConfig.full().text
    projected, cache = _random(batch, tokens, 2560, dtype=dtype), _random(2, batch, slots, 512, dtype=dtype, seed=1)
    positions = torch.arange(tokens, device="cuda") + torch.arange(batch, device="cuda")[:, None]
    cos, sin = gemma.rope_tables(positions, 256)
    visible = _random(batch, tokens, slots, dtype=torch.float32, seed=2) > 0
    visible[:, :, 64:192] = False  # whole blocks that nobody sees
    visible[:, :, cursor:] = torch.ones(tokens, slots - cursor, device="cuda").tril().bool()
    bias = gemma.bias_of(visible)
    q, new = gemma.split_qkv(projected, cos, sin, config)
    theirs = cache[0].clone()
    theirs[:, cursor : cursor + tokens] = new
    expected = gemma.attend(q, theirs, bias)
    work, first = ops.workspace(cache), torch.full((batch,), cursor, device="cuda")
    for layer in (0, 1, 0):  # launches that follow one another share the workspace
        identity = torch.eye(2560, device="cuda", dtype=dtype)
        seen = ops.attend_new(projected, identity, (cos, sin), config, cache[layer], first, bias, work)
    torch.testing.assert_close(cache[0], theirs)  # the turned keys are rounded once, torch's twice
    assert _error(seen, expected) < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    alone = ops.attend_new(
        projected[:1],
        identity,
        (cos[:1], sin[:1]),
        config,
        cache[0][:1],
        first[:1],
        bias[:1],
        ops.workspace(cache[:, :1]),
    )
    assert torch.equal(alone[0], seen[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("inner", "columns"), [(2048, 256), (2048, 300), (2048, 34), (2048, 2), (32, 1024), (1024, 32)]
)
def test_a_row_of_a_linear_is_that_of_torch_and_its_own_affair(dtype: torch.dtype, inner: int, columns: int) -> None:
    x, weight, bias = (
        _random(32, 34, inner, dtype=dtype),
        _random(columns, inner, seed=1).float(),
        _random(columns).float(),
    )
    ours = ops.linear(x, weight, bias)
    assert _error(ours, torch.nn.functional.linear(x.double(), weight.double(), bias.double())) < 1e-6
    for rows in (slice(0, 1), slice(7, 10), slice(4, 32)):
        assert torch.equal(ops.linear(x[rows], weight, bias), ours[rows])


@pytest.mark.parametrize("count", [256, 34, 300, 2])
def test_a_pick_is_that_of_torch(count: int) -> None:
    scores, table = _random(32, count, dtype=torch.float32), _random(count, 2048, seed=1)
    scores[3, 0] = scores[3, count // 2] = 99.0  # a tie
    forced = torch.where(torch.arange(32) % 4 == 0, torch.arange(32) % count, -1)
    follower = _random(2048, seed=2)
    for after in (None, follower):
        ours = ops.pick(scores, forced.cuda(), table, after)
        theirs = ops.pick(scores.cpu(), forced, table.cpu(), None if after is None else after.cpu())
        assert ours[0][3] == count // 2
        for own, other in zip(ours, theirs, strict=True):
            assert torch.equal(own.cpu(), other)


def _vlm(precision: Precision, graphs: bool) -> WaypointVLM:
    from wpray.bench.policy_layouts import random_weights

    config = VlmConfig.full()
    weights = random_weights(vlm_manifest(config, "bfloat16"), precision)
    return loading.vlm(*weights, config, BINS256, HEADER, _computing(precision, graphs))


def _computing(precision: Precision, graphs: bool) -> Computing:
    return Computing(precision, precision, "float32", graphs=graphs, device=torch.device("cuda"))


def _images(count: int) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (count, 2, 224, 224, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def test_a_full_size_vlm_plans_the_same_alone_batched_and_captured() -> None:
    eager, images = _vlm("float32", graphs=False), _images(5)
    together = eager.plan(images, PROMPTS)
    for row in range(5):
        alone = eager.plan(images[row : row + 1], PROMPTS[row : row + 1])
        assert torch.equal(alone.values[0, :, :8], together.values[row, :, :8])
        assert torch.equal(alone.durations[0], together.durations[row])
    del eager
    gc.collect()
    captured = _vlm("float32", graphs=True)
    for _ in range(2):
        again = captured.plan(images, PROMPTS)
        assert torch.equal(again.values, together.values)
        assert torch.equal(again.durations, together.durations)


def test_a_full_size_vlm_in_bfloat16_is_captured_to_the_bit_and_near_float32_alone_and_batched() -> None:
    images = _images(5)
    forced = torch.randint(0, 32, (5, 7, 9), generator=torch.Generator().manual_seed(0))
    hidden = {}
    for precision in ("float32", "bfloat16"):
        model = _vlm(precision, graphs=False)
        model.hidden = []
        eager = model.plan(images, PROMPTS, forced=forced)
        hidden[precision] = torch.cat(model.hidden, dim=1)
        assert torch.equal(eager.values[..., :8].cpu(), forced[..., :8])
        for row in range(5):
            model.hidden = []
            model.plan(images[row : row + 1], PROMPTS[row : row + 1], forced=forced[row : row + 1])
            alone = torch.cat(model.hidden, dim=1)[0]
            assert _error(alone, hidden[precision][row]) < (1e-4 if precision == "float32" else 0.1)
        del model
        gc.collect()
    assert _error(hidden["bfloat16"], hidden["float32"]) < 0.1
    free = {graphs: _vlm("bfloat16", graphs).plan(images, PROMPTS) for graphs in (False, True)}
    assert torch.equal(free[True].values, free[False].values)
    assert torch.equal(free[True].durations, free[False].durations)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_a_full_size_action_expert_agrees_alone_batched_and_captured(precision: Precision, tolerance: float) -> None:
    from wpray.bench.policy_layouts import random_weights

    config, images = ActionExpertConfig.full(), _images(5)
    manifest = action_expert_manifest(config, "bfloat16")
    start, end = torch.rand(2, 5, 32, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(2))
    given = (start, end, torch.tensor([1, 8, 16, 24, 32]), noise)
    eager = loading.action_expert(*random_weights(manifest, precision), config, _computing(precision, False))
    together = eager.act(images, PROMPTS, *given)
    for row in range(5):
        alone = eager.act(images[row : row + 1], PROMPTS[row : row + 1], *(part[row : row + 1] for part in given))
        assert _error(alone[0], together[row]) < tolerance
    del eager
    gc.collect()
    captured = loading.action_expert(*random_weights(manifest, precision), config, _computing(precision, True))
    for _ in range(2):
        assert torch.equal(captured.act(images, PROMPTS, *given), together)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"duration_embed": True}, {"duration_embed": True, "planner": BlockPlannerConfig(10, 7)}],
    ids=["a", "b", "block"],
)
def test_full_size_joint_models_are_captured_to_the_bit_and_share_features(
    precision: Precision, changes: dict[str, Any]
) -> None:
    from wpray.bench.policy_layouts import random_weights

    size, images = replace(ActionExpertConfig.full(), **changes), _images(5)
    manifest = action_expert_manifest(size, "bfloat16")
    start, end = torch.rand(2, 5, 32, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(2))
    given = (start, end, torch.tensor([1, 8, 16, 24, 32]), noise)
    answers = []
    for graphs in (False, True):
        how = _computing(precision, graphs)
        planner, expert = loading.joint_models(*random_weights(manifest, precision), size, BINS300, HEADER, how)
        for _ in range(2 if graphs else 1):
            plan = planner.plan(images, PROMPTS)
            answers.append((plan.values, expert.act(plan.features, PROMPTS, *given)))
            assert torch.equal(expert.act(images, PROMPTS, *given), answers[-1][1])
        del planner, expert, plan
        gc.collect()
        torch.cuda.empty_cache()
    for values, actions in answers[1:]:
        assert torch.equal(values, answers[0][0])
        assert torch.equal(actions, answers[0][1])


@pytest.mark.parametrize("planner", [None, BlockPlannerConfig(10, 7)], ids=["token", "block"])
def test_sampled_plans_are_captured_to_the_bit_and_follow_their_own_bias(planner: BlockPlannerConfig | None) -> None:
    from wpray.bench.policy_layouts import random_weights

    size = replace(ActionExpertConfig.full(), duration_embed=True, planner=planner)
    manifest, sampling, images = action_expert_manifest(size, "bfloat16"), Sampling(0.7, True), _images(5)
    generators = [np.random.default_rng(row) for row in range(5)]
    bias = torch.from_numpy(np.stack([sampling.bias(BINS300, 7, generator) for generator in generators]))
    wanted = torch.from_numpy(
        np.stack([np.random.default_rng(9).integers(1, family.count, (5, 7)) for family in BINS300.families], axis=-1)
    )
    forcing = torch.zeros_like(bias)
    for place in range(len(BINS300.families)):
        forcing.scatter_(2, BINS300.first_score(place) + wanted[..., place : place + 1], 1e6)
    found = []
    for graphs in (False, True):
        how = replace(_computing("bfloat16", graphs), sampling=sampling)
        vlm, _ = loading.joint_models(*random_weights(manifest, "bfloat16"), size, BINS300, HEADER, how)
        for _ in range(2):
            assert torch.equal(vlm.plan(images, PROMPTS, bias=forcing).values.cpu(), wanted)
            found.append(vlm.plan(images, PROMPTS, bias=bias).values.cpu())
        vlm.trace(0, 2, BatchShape.whole(2))
        del vlm
        gc.collect()
        torch.cuda.empty_cache()
    assert all(torch.equal(values, found[0]) for values in found)
    assert (found[0][:, 0, -1] > 0).all()
    assert len(np.unique(found[0].numpy(), axis=0)) == 5
