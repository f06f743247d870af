"""Plans at a temperature, and plans whose first waypoint must execute something."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.policies.vla import golden_config, joint_config, observation, reply_bytes, trial
from wpray.config import Config
from wpray.models.sampling import Sampling
from wpray.models.token_layout import BINS256, BINS300
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.types import PlanRequest

torch = pytest.importorskip("torch")
LAYOUTS = ("two", "joint", "block")
# Of each value of a waypoint: the ids that it is one of, value 0 first.
_BINS300 = [range(257023, 256723, -1)] * 6 + [range(256687, 256685, -1), range(256723, 256689, -1)]
_BINS256 = [range(257023, 256767, -1)] * 8 + [range(256767, 256733, -1)]
_TABLES = {
    "two": ("vlm", "paligemma.lm_head.weight", _BINS256),
    "joint": ("a", "paligemma_with_expert.paligemma.lm_head.weight", _BINS300),
    "block": ("block", "paligemma_with_expert.paligemma.lm_head.weight", _BINS300),
}

Build = Callable[..., WaypointVlaPolicy]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(layout: str, checkpoints: Path, joint_checkpoints: Path) -> Build:
    def build(**options: object) -> WaypointVlaPolicy:
        if layout == "two":
            return waypoint_vla.build(golden_config(checkpoints, **options))
        folder = joint_checkpoints / ("a" if layout == "joint" else "block")
        return waypoint_vla.build(joint_config(folder, lm_head_precision="float32", **options))

    return build


def _request(index: int, seed: int = 7) -> PlanRequest:
    return PlanRequest(trial(index), index, index, observation(np.random.default_rng(seed)))


def _exponentials(request: PlanRequest, count: int) -> np.ndarray:
    """(7, count) Waiting times, drawn as the description of a plan's key says it."""
    suite, task, index = request.trial.key
    key = ["wpray planner noise 1", request.trial.seed, suite, task, index, request.plan_index, request.segment_index]
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64)))
    return generator.standard_exponential((7, count))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_each_value_is_a_draw_from_the_softmax_of_its_candidates(
    layout: str, build: Build, temperature: float, checkpoints: Path, joint_checkpoints: Path
) -> None:
    """The largest of probability / waiting time, which is how a categorical distribution is drawn from."""
    from safetensors import safe_open

    folder, name, families = _TABLES[layout]
    where = (checkpoints if layout == "two" else joint_checkpoints) / folder / "model.safetensors"
    with safe_open(where, "pt") as file:
        table = file.get_tensor(name).float()
    policy, request = build(temperature=temperature), _request(3)
    policy._vlm.hidden = states = []
    (reply,) = policy.plan([request])
    values = policy._vlm.layout.values(reply.plan.waypoints[:, : policy._vlm.layout.state_dim], reply.plan.durations)
    waiting = _exponentials(request, sum(map(len, families)))
    for waypoint in range(7):
        start = 0
        for place, ids in enumerate(families):
            slot = place + 1 + (place == len(families) - 1)  # behind <wp>, and <dur>
            step = waypoint * len(families) + place
            hidden = states[1 + waypoint][0, slot] if layout == "block" else states[step][0, -1]
            chances = torch.softmax(hidden.float() @ table[list(ids)].T / temperature, -1).double().numpy()
            drawn = chances / waiting[waypoint, start : start + len(ids)]
            assert values[waypoint, place] == int(np.argmax(drawn)), (waypoint, place)
            start += len(ids)


def test_draws_have_the_chances_of_the_softmax() -> None:
    scores, temperature = np.linspace(-1, 2, 34), 0.8
    expected = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    generator = np.random.default_rng(1)
    sampling = Sampling(temperature)
    biases = np.concatenate([sampling.bias(BINS300, 7, generator)[:, -34:] for _ in range(2000)])
    counts = np.bincount((scores / temperature + biases).argmax(-1), minlength=34)
    chi_square = ((counts - expected * len(biases)) ** 2 / (expected * len(biases))).sum()
    assert chi_square < 70  # 33 degrees of freedom: more in one of 5,000 cases


def test_a_plan_depends_on_its_key_alone(build: Build) -> None:
    policy = build(temperature=1.0)
    requests = [_request(index) for index in range(3)]
    alone = [policy.plan([request])[0].plan for request in requests]
    together = [reply.plan for reply in policy.plan(requests[::-1])][::-1]
    assert [plan.durations.tolist() for plan in alone] == [plan.durations.tolist() for plan in together]
    assert all(np.array_equal(a.waypoints, b.waypoints) for a, b in zip(alone, together, strict=True))
    first = requests[0]
    again = policy.plan([policy.prepare(first)])[0].plan  # type: ignore[list-item]
    assert np.array_equal(again.waypoints, alone[0].waypoints)
    others = [
        replace(first, plan_index=5),
        replace(first, trial=replace(first.trial, seed=1)),
        replace(first, trial=replace(first.trial, init_state=40)),
    ]
    for other in others:
        assert not np.array_equal(policy.plan([other])[0].plan.waypoints, alone[0].waypoints)


def test_greedy_plans_are_what_they_were(build: Build) -> None:
    """Also with a rule that changes nothing here: where the first waypoint's duration is not 0 anyway."""
    plain, ruled = build(), build(forbid_terminal_first_waypoint=True)
    same = 0
    for index in range(4):
        request = _request(index, seed=index)
        (before,), (after,) = plain.plan([request]), ruled.plan([request])
        assert after.plan.durations[0] > 0
        if before.plan.durations[0] > 0:
            assert reply_bytes(before) == reply_bytes(after)
            same += 1
    assert same > 0


def test_the_first_waypoint_executes_something_if_it_must(build: Build) -> None:
    requests = [_request(index, seed=index) for index in range(40)]
    free, ruled = build(temperature=50.0), build(temperature=50.0, forbid_terminal_first_waypoint=True)
    before = np.stack([free.plan([request])[0].plan.durations for request in requests])
    after = np.stack([ruled.plan([request])[0].plan.durations for request in requests])
    assert (after[:, 0] > 0).all()
    assert (after[:, 1:] == 0).any() and (before[:, 1:] == 0).any()


@pytest.mark.parametrize("tokens", [BINS256, BINS300])
def test_the_rule_touches_one_candidate_of_one_waypoint(tokens: object) -> None:
    assert tokens in (BINS256, BINS300)
    added = Sampling(forbids_terminal_first=True).bias(tokens, 7, np.random.default_rng(0))  # type: ignore[arg-type]
    where = np.argwhere(added != 0).tolist()
    assert where == [[0, tokens.scores - 34]]  # type: ignore[attr-defined]
    assert np.isneginf(added[0, where[0][1]])


@pytest.mark.parametrize("options", [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": True}])
def test_a_temperature_is_a_number_from_0(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Config.model_validate(options)
