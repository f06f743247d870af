"""The learned policy through the real loop: the reference's recorded rollout, alone and beside other trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.policies.vla import DATA, golden_config, observation, segment_request, trial
from wpray.policies.base import PolicyClient
from wpray.policies.local import LocalPolicyClient
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.rollout import RolloutSettings, run_trial
from wpray.types import (
    EpisodeResult,
    Observation,
    ObservationSpec,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Task,
    Trial,
)

TASK = Task("libero_object", 0, "pick", "pick up the alphabet soup and place it in the basket", 50, 80)


def _recorded_noise(request: PlanRequest | SegmentRequest, shape: tuple[int, ...]) -> np.ndarray:
    """What the recording drew for its i-th segment."""
    generator = np.random.Generator(np.random.PCG64([0, request.segment_index]))
    return generator.standard_normal((1, *shape)).astype(np.float32)[0]


class _Crowd:
    """A client whose every request is answered in a batch with requests of other trials, at a place that changes."""

    def __init__(self, policy: WaypointVlaPolicy, size: int) -> None:
        self.spec, self._policy, self._rng, self._size = policy.spec, policy, np.random.default_rng(0), size

    def plan(self, request: PlanRequest) -> PlanReply:
        others = [PlanRequest(trial(i), i, i, observation(self._rng)) for i in range(self._size - 1)]
        place = int(self._rng.integers(self._size))
        return self._policy.plan([*others[:place], request, *others[place:]])[place]

    def act(self, request: SegmentRequest) -> SegmentReply:
        others = [segment_request(self._rng, i) for i in range(self._size - 1)]
        place = int(self._rng.integers(self._size))
        return self._policy.act([*others[:place], request, *others[place:]])[place]


@pytest.mark.libero
@pytest.mark.parametrize("beside", [0, 3])
def test_the_recorded_rollout_is_reproduced(checkpoints: Path, beside: int) -> None:
    """The whole protocol on real LIBERO, alone and with other trials in every batch."""
    from wpray.benchmarks.factory import make_environment

    policy = waypoint_vla.build(golden_config(checkpoints), noise=_recorded_noise)
    with np.load(DATA / "rollout_task0_trial0.npz") as data:
        golden = dict(data)
    client = _Following(_Crowd(policy, beside + 1) if beside else LocalPolicyClient(policy), golden)
    env = _Showing(make_environment("libero_object", "wpray"), golden)
    try:
        result = run_trial(env, client, Trial(TASK, 0, 0), RolloutSettings())
    finally:
        env.close()
    _agrees(result, env.seen, golden)
    for own, recorded in client.chunks:
        assert np.abs(own - recorded).max() < 1e-3
        assert np.array_equal(own[:, 6], recorded[:, 6])


class _Following:
    """Answers with the recorded actions once the policy has given its own.

    Random weights amplify the rounding of one action to other images within two segments: only what is given the same
    can be compared to the end.
    """

    def __init__(self, client: PolicyClient, golden: dict[str, np.ndarray]) -> None:
        self.spec, self._client, self._golden = client.spec, client, golden
        self.chunks: list[tuple[np.ndarray, np.ndarray]] = []  # own, recorded

    def plan(self, request: PlanRequest) -> PlanReply:
        reply = self._client.plan(request)
        assert reply.first is not None
        return PlanReply(reply.plan, self._recorded(request.segment_index, reply.first))

    def act(self, request: SegmentRequest) -> SegmentReply:
        index = request.segment_index
        assert np.array_equal(request.start, self._golden["seg_start"][index])
        assert np.array_equal(request.end, self._golden["seg_end"][index])
        return SegmentReply(self._recorded(index, self._client.act(request).segment))

    def _recorded(self, index: int, segment: Segment) -> Segment:
        step, duration = (int(self._golden[name][index]) for name in ("seg_step", "seg_duration"))
        recorded = self._golden["action"][step : step + duration]
        self.chunks.append((segment.actions[: len(recorded)], recorded))
        return Segment(np.concatenate([recorded, segment.actions[len(recorded) :]]))


def _agrees(result: EpisodeResult, seen: Sequence[Observation], golden: dict[str, np.ndarray]) -> None:
    plans = [decision for decision in result.decisions if decision.kind == "plan"]
    segments = [decision for decision in result.decisions if decision.kind == "segment"]
    assert [plan.step for plan in plans] == golden["plan_step"].tolist()
    assert [segment.step for segment in segments] == golden["seg_step"].tolist()
    assert [segment.duration for segment in segments] == golden["seg_duration"].tolist()
    waypoints = np.stack([np.column_stack([plan.waypoints, plan.durations]) for plan in plans])
    assert np.array_equal(waypoints.astype(np.float32), golden["plan_tokens"])
    _saw_the_same(seen, golden, np.stack([state["qpos"] for state in result.trajectory.states]))


def _saw_the_same(seen: Sequence[Observation], golden: dict[str, np.ndarray], qpos: np.ndarray) -> None:
    """To the bit where this processor computes what the recording's did; its BLAS and libm may round otherwise."""
    base, wrist = (np.stack([getattr(o, f"{name}_image") for o in seen]) for name in ("base", "wrist"))
    # A plan and its first segment share one observation.
    planned = [seen[golden["seg_step"].tolist().index(step)].proprio for step in golden["plan_step"]]
    same_processor = np.array_equal(qpos, golden["qpos"])
    assert np.abs(qpos - golden["qpos"]).max() < 1e-6
    assert np.abs(np.stack(planned).astype(np.float32) - golden["proprio"]).max() <= (0 if same_processor else 1e-6)
    for name, ours in (("image_base", base), ("image_wrist", wrist)):
        assert np.array_equal(ours[0], golden[name][0])
        difference = np.abs(ours.astype(int) - golden[name]).mean()
        assert difference <= (0 if same_processor else 0.02)


class _Showing:
    """An environment that shows the recorded images and proprio, and keeps what it would have shown."""

    def __init__(self, env: object, golden: dict[str, np.ndarray]) -> None:
        self._env, self._golden = env, golden
        self.seen: list[Observation] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)

    def observe(self, spec: ObservationSpec) -> Observation:
        own: Observation = self._env.observe(spec)  # type: ignore[attr-defined]
        index = len(self.seen)
        self.seen.append(own)
        plans = self._golden["plan_step"].tolist()
        step = int(self._golden["seg_step"][index])
        proprio = self._golden["proprio"][plans.index(step)].astype(np.float64) if step in plans else own.proprio
        images = {role: self._golden[f"image_{role}"][index] for role in ("base", "wrist")}
        return Observation(proprio, images)
