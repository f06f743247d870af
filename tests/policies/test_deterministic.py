"""With `batching.deterministic` an answer is the same to the bit, whatever it shares its batch with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.policies.test_stepwise_plans import in_steps
from tests.policies.vla import (
    DATA,
    JOINT_DATA,
    golden_config,
    joint_config,
    observation,
    reply_bytes,
    segment_request,
    trial,
)
from wpray.models import loading
from wpray.models.batch_invariance import InvariantShapes, fingerprints
from wpray.models.batch_parts import BatchShape
from wpray.models.config import (
    ActionExpertConfig,
    BlockPlannerConfig,
    Precision,
    TensorManifest,
    VlmConfig,
    action_expert_manifest,
    vlm_manifest,
)
from wpray.models.loading import Computing
from wpray.models.token_layout import BINS256, BINS300
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.noise import flow_noise, noise_key
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.policies.waypoint_vla.prompt import PromptEncoder, load_tokenizer
from wpray.policies.waypoint_vla.statistics import load_scaling
from wpray.policies.waypoint_vla.suite_statistics import SuiteScalings
from wpray.types import PlanReply, PlanRequest, SegmentReply, SegmentRequest

Weights = Callable[[TensorManifest, Precision], tuple[dict[str, torch.Tensor], torch.Tensor]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_deterministic_batch_does_not_show_in_the_answers(checkpoints: Path, precision: Precision) -> None:
    config = golden_config(checkpoints, batching={"deterministic": True}, precision=precision, vlm_precision=precision)
    _batches_do_not_show(waypoint_vla.build(config), (1, 3, 8, 17, 31) if precision == "float32" else (1, 11))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_neither_does_one_of_full_size_in_captured_graphs(checkpoints: Path, precision: Precision) -> None:
    from wpray.bench.policy_layouts import random_weights

    policy = _random_policy(checkpoints, VlmConfig.full(), ActionExpertConfig.full(), random_weights, precision)
    policy.capture()
    _batches_do_not_show(policy, (1, 3, 8, 17, 31) if precision == "bfloat16" else (3, 17))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["a", "b", "block"])
def test_a_joint_models_batch_does_not_show_in_the_answers(
    joint_checkpoints: Path, variant: str, precision: Precision
) -> None:
    config = joint_config(joint_checkpoints / variant, batching={"deterministic": True}, precision=precision)
    _batches_do_not_show(waypoint_vla.build(config), (1, 7))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"duration_embed": True}, {"duration_embed": True, "planner": BlockPlannerConfig(10, 7)}],
    ids=["a", "b", "block"],
)
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_neither_does_one_of_a_full_size_joint_model_in_captured_graphs(
    joint_checkpoints: Path, precision: Precision, changes: dict[str, Any]
) -> None:
    from wpray.bench.policy_layouts import random_weights

    size = replace(ActionExpertConfig.full(), **changes)
    weights = random_weights(action_expert_manifest(size, "bfloat16"), precision)
    config = joint_config(joint_checkpoints / "a", batching={"deterministic": True}, precision=precision)
    encoder = PromptEncoder(load_tokenizer(DATA / "tokenizer.model", small=True), BINS300, config.max_token_len)
    how = Computing(precision, precision, "float32", graphs=True, device=torch.device("cuda"))
    models = loading.joint_models(*weights, size, BINS300, encoder.header, how)
    scaling = load_scaling(JOINT_DATA / "dataset_statistics.json", "q99", "libero_object")
    policy = WaypointVlaPolicy(
        config, *models, encoder, SuiteScalings(scaling), lambda request, shape: flow_noise(noise_key(request), shape)
    )
    policy.capture()
    _batches_do_not_show(policy, (1, 3, 8, 17, 31) if precision == "bfloat16" else (3, 17))


def test_shapes_that_compute_something_else_are_not_taken() -> None:
    """As on a GPU that cuts some sum for parts of one prompt, and for one to three and 16 rows."""

    def trace(start: int, stop: int, shape: BatchShape) -> torch.Tensor:
        parts = [size for rows, size in shape.parts(stop - start) for _ in range(rows.stop - rows.start)]
        odd = [part == 1 or shape.rows in (1, 2, 3, 16) for part in parts]
        return torch.stack([torch.arange(start, stop), torch.tensor(odd)], dim=1)

    shapes = InvariantShapes(trace, BatchShape((4,), 8), (1, 2, 4, 8), (1, 2, 4, 8, 12, 16, 20))
    found = [shapes.of(count) for count in (1, 2, 4, 5, 8, 9, 13, 20, 32)]
    assert found == [BatchShape((2, 4, 8), rows) for rows in (4, 4, 4, 8, 8, 12, 20, 20, 20)]
    assert InvariantShapes(trace, BatchShape((2,), 8), (), ()).of(1) == BatchShape((2,), 8)


def test_a_shape_is_tried_when_a_batch_first_needs_it() -> None:
    tried: list[int] = []

    def trace(start: int, stop: int, shape: BatchShape) -> torch.Tensor:
        tried.append(shape.rows)
        return torch.stack([torch.arange(start, stop), torch.full((stop - start,), int(shape.rows == 32))], dim=1)

    shapes = InvariantShapes(trace, BatchShape((4,), 8), (4, 8), (1, 4, 8, 16, 32))
    assert set(tried) == {8, 32}
    tried.clear()
    assert [shapes.of(count).rows for count in (3, 4, 8, 3)] == [4, 4, 8, 4]
    assert tried == [4]
    assert shapes.of(32).rows == 16, "the largest shape gave other bits"
    assert (shapes.most, shapes.known(3).rows, shapes.known(9).rows) == (16, 4, 16)


def test_a_bit_shows_in_a_fingerprint() -> None:
    values = torch.randn(3, 500).bfloat16()
    other = values.clone()
    other.view(torch.int16)[1, 321] ^= 1
    same = fingerprints(values, values.double()) == fingerprints(other, values.double())
    assert same.tolist() == [[True, True], [False, True], [True, True]]


def _random_policy(
    checkpoints: Path,
    vlm_config: VlmConfig,
    expert_config: ActionExpertConfig,
    weights: Weights,
    precision: Precision = "bfloat16",
) -> WaypointVlaPolicy:
    """From no file; the configuration's own checkpoints are not read."""
    config = golden_config(checkpoints, batching={"deterministic": True}, vlm_precision=precision, precision=precision)
    encoder = PromptEncoder(load_tokenizer(DATA / "tokenizer.model", small=True), BINS256, config.max_token_len)
    scaling = load_scaling(DATA / "dataset_statistics.json", "q99", "libero_object")
    how = Computing(precision, precision, "float32", graphs=True, device=torch.device("cuda"))
    vlm_weights = weights(vlm_manifest(vlm_config, "bfloat16"), precision)
    vlm = loading.vlm(*vlm_weights, vlm_config, BINS256, encoder.header, how)
    expert = loading.action_expert(
        *weights(action_expert_manifest(expert_config, "bfloat16"), precision), expert_config, how
    )
    return WaypointVlaPolicy(
        config,
        vlm,
        expert,
        encoder,
        SuiteScalings(scaling),
        lambda request, shape: flow_noise(noise_key(request), shape),
    )


def _batches_do_not_show(policy: WaypointVlaPolicy, sizes: tuple[int, ...]) -> None:
    """The same requests together, and in shuffled batches of each size: equal to the bit."""
    rng = np.random.default_rng(1)
    plans = [PlanRequest(trial(i), i, 2 * i, observation(rng)) for i in range(32)]
    segments = [segment_request(rng, i) for i in range(32)]
    whole = policy.plan(plans), policy.act(segments)
    assert len({reply_bytes(reply) for reply in whole[0]}) == 32
    for size in sizes:
        order = rng.permutation(32)[: size if size == 1 else None]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for row, reply in zip(rows, policy.plan([plans[row] for row in rows]), strict=True):
                assert reply_bytes(reply) == reply_bytes(whole[0][row])
            for row, answer in zip(rows, policy.act([segments[row] for row in rows]), strict=True):
                assert answer.segment.actions.tobytes() == whole[1][row].segment.actions.tobytes()
    _companions_do_not_show(policy, plans, segments, whole)


def _companions_do_not_show(
    policy: WaypointVlaPolicy,
    plans: Sequence[PlanRequest],
    segments: Sequence[SegmentRequest],
    whole: tuple[list[PlanReply], list[SegmentReply]],
) -> None:
    """Plans that start in any order while others are under way: equal to the bit, if the policy decodes in steps."""
    steps = policy.stepwise
    if steps is None:
        return
    for starts in [*itertools.permutations((0, 1, 4)), (0, 0, 0, 3, 3, 3, 5, 6)]:
        chosen = range(min(len(starts), steps.slots))
        together = segments[: 5 if len(starts) > 3 else 0]
        replies, others = in_steps(steps, [plans[row] for row in chosen], [starts[row] for row in chosen], together)
        assert [reply_bytes(reply) for reply in replies] == [reply_bytes(whole[0][row]) for row in chosen]
        for other, expected in zip(others, whole[1], strict=False):
            assert other.segment.actions.tobytes() == expected.segment.actions.tobytes()
