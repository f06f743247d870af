"""The conformance suite: built-in policies pass it, and every mistake is caught by its own check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.policies.chunky import ChunkyPolicy
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.random_policy import RandomPolicy
from wpray.policies.random_policy import spec_of as random_spec
from wpray.testing.policies import ConformanceError, check_policy
from wpray.types import ChunkReply, ChunkRequest, PlanReply, PlanRequest, SegmentReply, SegmentRequest


@pytest.mark.parametrize("name", ["noop", "random", "scripted"])
def test_built_in_policies_conform(name: str) -> None:
    passed = check_policy(name)
    assert passed[0] == "spec" and {"plan: batches", "act: order", "act: errors"} <= set(passed)


def test_a_chunk_policy_conforms() -> None:
    checks = ("answers", "replies", "determinism", "batches", "order", "errors")
    assert check_policy("tests.policies.chunky:ChunkyPolicy", {"horizon": 9}) == (
        "spec",
        *(f"predict: {check}" for check in checks),
    )


def test_the_learned_policy_conforms(synthetic_config: Config) -> None:
    passed = check_policy("waypoint_vla", config=synthetic_config, count=4)
    assert {"plan: preparation", "act: preparation", "plan: batches"} <= set(passed)


@pytest.fixture(scope="module")
def synthetic_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    import yaml

    from wpray.models import synthetic

    folder = tmp_path_factory.mktemp("synthetic")
    assert synthetic.main([str(folder), "--variant", "tiny", "--precision", "float32"]) == 0
    return Config.model_validate({**yaml.safe_load((folder / "config.yaml").read_text()), "task_suite": "fake"})


class Mine(ChunkyPolicy):
    """Sound; each mistake below changes one thing."""

    def __init__(self) -> None:
        super().__init__(self.Settings())

    def answered(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return super().predict(requests)


class OfTheBatch(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [ChunkReply(reply.actions * len(requests)) for reply in self.answered(requests)]


class Reversed(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return self.answered(requests)[::-1]


class Stateful(Mine):
    calls = 0

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        self.calls += 1
        return [ChunkReply(reply.actions + self.calls) for reply in self.answered(requests)]


class Short(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [ChunkReply(reply.actions[:3]) for reply in self.answered(requests)]


class NotFinite(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [ChunkReply(np.full_like(reply.actions, np.nan)) for reply in self.answered(requests)]


class ForgetsOne(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return self.answered(requests)[: max(1, len(requests) - 1)]


class BrokenByAnError(Mine):
    broken = False

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        self.broken = self.broken or any(not request.observation.images for request in requests)
        return [ChunkReply(reply.actions + self.broken) for reply in self.answered(requests)]


class OddlyPrepared(Mine):
    def prepare(self, request: ChunkRequest) -> ChunkRequest:
        return dataclasses.replace(request, chunk_index=request.chunk_index + 1)


class WordsAsMetrics(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        odd: Any = {"mood": ["good"]}
        return [ChunkReply(reply.actions, metrics=odd) for reply in self.answered(requests)]


class OddRest(Mine):
    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        return [dataclasses.replace(reply, rest=np.zeros((2, 3))) for reply in self.answered(requests)]


class NoSteps(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.spec = dataclasses.replace(self.spec, execute_steps=-1)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (OfTheBatch, "predict: batches: request 0 in a batch of 2 gets another reply than alone"),
        (Reversed, "predict: order: request"),
        (Stateful, "predict: determinism: the same request, asked again, gets another reply"),
        (Short, "predict: replies: actions have shape (3, 7), expected (8 or more, 7)"),
        (NotFinite, "predict: replies: an action is not finite"),
        (ForgetsOne, "predict: batches: a batch of 2 got 1 replies"),
        (BrokenByAnError, "predict: errors: after an error, a request gets another reply"),
        (OddlyPrepared, "predict: preparation: a prepared request gets another reply"),
        (WordsAsMetrics, "predict: replies: metric 'mood' is ['good'], not a number with a name"),
        (OddRest, "predict: replies: actions have shape (2, 3), expected (2 or more, 7)"),
        (NoSteps, "spec: spec must be a PolicySpec, with execute_steps of 0 or more, not -1"),
    ],
)
def test_a_mistake_is_named_by_the_check_that_finds_it(make: Callable[[], Mine], line: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_policy(make())
    assert line in str(caught.value)


def test_a_small_difference_may_be_allowed() -> None:
    class Rounded(Mine):
        def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
            return [ChunkReply(reply.actions + 1e-9 * (len(requests) > 1)) for reply in self.answered(requests)]

    with pytest.raises(ConformanceError, match="batches"):
        check_policy(Rounded())
    assert "predict: batches" in check_policy(Rounded(), tolerance=1e-6)


class LacksItsFirstSegment(RandomPolicy):
    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        return [PlanReply(reply.plan, None) for reply in super().plan(requests)]


class ShortSegments(RandomPolicy):
    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        return [
            SegmentReply(dataclasses.replace(reply.segment, actions=reply.segment.actions[: request.duration - 1]))
            for request, reply in zip(requests, super().act(requests), strict=True)
        ]


def test_plans_and_segments_are_checked() -> None:
    spec = random_spec(Config())
    with pytest.raises(ConformanceError, match="plan: replies: a plan that executes a waypoint comes without"):
        check_policy(LacksItsFirstSegment(spec))
    with pytest.raises(ConformanceError, match="act: replies: actions have shape"):
        check_policy(ShortSegments(spec))


def test_a_policy_that_cannot_be_loaded_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="did you mean noop"):
        check_policy("nop")
