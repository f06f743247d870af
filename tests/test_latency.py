"""Latency: chunk policies against a plain loop, the action that stands still, and what a configuration means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wpray.benchmarks.base import Benchmark
from wpray.config import Config
from wpray.orchestration.actors import rollout_settings
from wpray.policies.base import PolicySpec
from wpray.provenance.settings import comparable, outcome_fields
from wpray.rollout import PolicyOutputError, run_trial
from wpray.types import ActionSpec, ChunkReply, ChunkRequest, EpisodeResult

from .test_rollout import TASK, TRIAL, CountingEnv

WAIT, LIMIT = 3, 3 + TASK.max_steps


class _Numbered:
    """Chunk n of a random length, whose actions bear their numbers; `rest` is the part that it gives apart."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.execute_steps = int(rng.choice([0, 1, 3, 5]))
        lengths = np.maximum(rng.integers(1, 13, 60), self.execute_steps)
        self.chunks = [self._chunk(number, int(length)) for number, length in enumerate(lengths)]
        self.apart = [0 if self.execute_steps else int(rng.choice([0, 2, 9])) for _ in lengths]
        self.spec = PolicySpec("numbered", False, False, 0, 1, kind="chunk", execute_steps=self.execute_steps)
        self.done_at = int(rng.choice([2, 1000, 1000]))
        self.seen_at: list[float] = []

    @staticmethod
    def _chunk(number: int, length: int) -> np.ndarray:
        chunk = np.repeat((number + np.arange(length) / 100)[:, None], 7, axis=1)
        chunk[:, 6] = np.where(np.arange(length) % 2, 1.0, -1.0)
        return chunk

    def parts(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What is executed of chunk `number` at least to be offered, and what is given apart."""
        chunk = self.chunks[number]
        cut = max(1, len(chunk) - self.apart[number])
        return chunk[:cut], chunk[cut:]

    def predict(self, request: ChunkRequest) -> ChunkReply:
        self.seen_at.append(request.observation.proprio[0])
        actions, rest = self.parts(request.chunk_index)
        given = rest if request.chunk_index % 2 or len(rest) else None
        return ChunkReply(actions, rest=given, done=request.chunk_index == self.done_at)


def _plain(policy: _Numbered, env: CountingEnv, latency: int, hold: bool) -> tuple[list[list[float]], list[int]]:
    """The loop as its description says: the actions, and the steps at which the policy is asked."""
    actions, asked, left = [[0.0] * 7] * WAIT, [], []

    def step(action: list[float]) -> None:
        if len(actions) < LIMIT and len(actions) != env.solved_at:
            actions.append(action)

    number = 0
    while len(actions) < LIMIT and len(actions) != env.solved_at:
        asked.append(len(actions))
        late = 0
        for _ in range(latency):
            if hold and left:
                step(left.pop(0))
                late += 1
            else:
                step([0.0] * 6 + [actions[-1][6]])
        if number == policy.done_at:
            break
        offered, rest = (part.tolist() for part in policy.parts(number))
        steps = policy.execute_steps or len(offered)
        chunk = offered + rest if hold else offered
        late = min(late, len(chunk) - steps)
        for action in chunk[late : late + steps]:
            step(action)
        left = chunk[late + steps :]
        number += 1
    return actions, asked


@pytest.mark.parametrize("seed", range(150))
def test_a_chunk_policys_time_passes_as_in_the_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    extra_ms, mode = float(rng.choice([0, 20, 50, 130, 400, 3000])), str(rng.choice(["hold", "freeze"]))
    config = Config.model_validate({"num_steps_wait": WAIT, "latency": {"extra_ms": extra_ms, "mode": mode}})
    env, policy = CountingEnv(solved_at=int(rng.choice([5, 20, 37, 53, 1000]))), _Numbered(rng)
    result = run_trial(env, policy, TRIAL, rollout_settings(config))
    actions, asked = _plain(policy, env, -(-int(extra_ms) // 50), mode == "hold")
    assert result.trajectory.actions.tolist() == actions
    assert [decision.step for decision in result.decisions] == asked == policy.seen_at
    assert result.success == (len(actions) == env.solved_at)
    ends = [*asked[1:], len(actions)]
    for decision, end in zip(result.decisions, ends, strict=True):
        assert (decision.latency_steps is None) == (extra_ms == 0)
        assert decision.step + (decision.latency_steps or 0) + (decision.steps or 0) == end


def _run(policy: Any, **latency: Any) -> EpisodeResult:
    config = Config.model_validate({"num_steps_wait": WAIT, "latency": latency})
    return run_trial(CountingEnv(), policy, TRIAL, rollout_settings(config))


def test_without_latency_nothing_differs_not_even_for_a_reply_with_a_rest() -> None:
    plain = _run(_Numbered(np.random.default_rng(5)))
    assert (
        plain.trajectory.actions.tobytes()
        == _run(_Numbered(np.random.default_rng(5)), mode="freeze").trajectory.actions.tobytes()
    )
    assert {decision.latency_steps for decision in plain.decisions} == {None}


class _Constant:
    """One action again and again, with a rest that nothing may execute."""

    def __init__(self, constant: list[float], rest: Any = None, **spec: Any) -> None:
        self.spec = PolicySpec("constant", False, False, 0, 1, kind="chunk", **spec)
        self._reply = ChunkReply(np.array([constant]), rest=rest)

    def predict(self, request: ChunkRequest) -> ChunkReply:
        return self._reply


def test_to_stand_still_is_no_motion_with_the_gripper_kept_or_the_same_target() -> None:
    action = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
    moved = _run(_Constant(action), extra_ms=100).trajectory.actions[WAIT:]
    assert moved[:6].tolist() == [[0.0] * 7] * 2 + [action] + [[0.0] * 6 + [1.0]] * 2 + [action]
    target = _run(_Constant(action, action=ActionSpec(control="absolute_eef")), extra_ms=100).trajectory.actions[WAIT:]
    assert target[:6].tolist() == [[0.0] * 7] * 2 + [action] * 4


def test_a_rest_is_checked_where_it_may_be_executed() -> None:
    broken = np.full((3, 7), np.nan)
    with pytest.raises(PolicyOutputError, match="not finite"):
        _run(_Constant([0.0] * 7, broken), extra_ms=50)
    assert _run(_Constant([0.0] * 7, broken), extra_ms=50, mode="freeze").num_steps == LIMIT
    assert _run(_Constant([0.0] * 7, broken)).num_steps == LIMIT


@pytest.mark.parametrize(("extra_ms", "steps"), [(0, 0), (0.1, 1), (50, 1), (50.1, 2), (100, 2), (123.4, 3)])
def test_milliseconds_are_whole_steps_rounded_up(extra_ms: float, steps: int) -> None:
    assert Config.model_validate({"latency": {"extra_ms": extra_ms}}).latency_steps == steps


class Clockless(Benchmark):
    """A benchmark that does not say how long a step is."""


def test_a_benchmark_without_a_control_frequency_has_no_latency() -> None:
    given = {"benchmark": f"{__name__}:Clockless", "task_suite": "reach"}
    assert Config.model_validate(given).latency_steps == 0
    with pytest.raises(ValueError, match=r"latency\.extra_ms: .* control_hz, or leave latency out"):
        Config.model_validate({**given, "latency": {"extra_ms": 5}})


def test_a_mode_without_a_latency_says_nothing() -> None:
    fields = [outcome_fields(Config.model_validate({"latency": given})) for given in ({}, {"mode": "freeze"})]
    assert comparable(fields[0]) == comparable(fields[1])
    assert "latency.extra_ms" not in fields[0], "folders of earlier versions are resumed"
    late = [
        outcome_fields(Config.model_validate({"latency": {"extra_ms": 5, "mode": mode}})) for mode in ("hold", "freeze")
    ]
    assert comparable(late[0]) != comparable(late[1])
