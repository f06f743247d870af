"""The newer layouts' recorded evaluation loops, through configuration, policy and rollout: each decision the same."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.tiny_env import TASK, TinyEnv
from tests.policies.vla import JOINT_DATA, joint_config
from tests.tiny_weights import Variant, write_joint
from wpray.models.token_layout import BINS300
from wpray.orchestration.actors import rollout_settings
from wpray.policies.waypoint_vla import policy as waypoint_vla
from wpray.policies.waypoint_vla.policy import WaypointVlaPolicy
from wpray.policies.waypoint_vla.preparation import ReadyPlan, ReadySegment
from wpray.rollout import run_trial
from wpray.types import (
    EpisodeResult,
    Observation,
    PlanReply,
    PlanRequest,
    SegmentReply,
    SegmentRequest,
    Trial,
    WaypointPlan,
)

_NOT_OURS = ("paligemma_variant", "action_expert_variant", "task_start", "task_end")


@dataclass
class _Recorder:
    """A client that keeps what was asked, and the normalized actions of each segment."""

    policy: WaypointVlaPolicy
    plans: list[tuple[ReadyPlan, WaypointPlan]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.policy.spec
        inner: Callable[..., Callable[[], np.ndarray]] = self.policy._flow

        def flow(*args: Any) -> Callable[[], np.ndarray]:
            wait = inner(*args)
            self.chunks.extend(wait())
            return wait

        self.policy._flow = flow  # type: ignore[method-assign]

    def plan(self, request: PlanRequest) -> PlanReply:
        ready = self.policy.prepare(request)
        assert isinstance(ready, ReadyPlan)
        (reply,) = self.policy.plan([ready])
        self.plans.append((ready, reply.plan))
        first = np.flatnonzero(reply.plan.durations)
        if reply.first is not None:
            end = reply.plan.waypoints[first[0]]
            self._note(ready, reply.plan.start, end, min(int(reply.plan.durations[first[0]]), 32))
        return reply

    def act(self, request: SegmentRequest) -> SegmentReply:
        ready = self.policy.prepare(request)
        assert isinstance(ready, ReadySegment)
        (reply,) = self.policy.act([ready])
        self._note(ready, ready.begin, ready.end, ready.duration)
        return reply

    def _note(self, ready: ReadyPlan | ReadySegment, start: np.ndarray, end: np.ndarray, duration: int) -> None:
        padded = np.pad(ready.action_prompt, (0, 64 - len(ready.action_prompt)))
        facts = {"start": start, "end": end, "duration": duration, "prompt": padded}
        pictures = _pictures(ready.observation)
        self.segments.append(facts | {"pictures": pictures, "noise_head": ready.noise.ravel()[:8]})


def _pictures(seen: Observation) -> list[int]:
    assert seen.base_image is not None
    assert seen.wrist_image is not None
    return [zlib.crc32(image.tobytes()) for image in (seen.base_image, seen.wrist_image)]


@pytest.mark.parametrize(("name", "variant"), [("rollout_a", "a"), ("rollout_a_closed", "a"), ("rollout_b", "b")])
def test_a_recorded_evaluation_is_reproduced(tmp_path: Path, name: str, variant: Variant) -> None:
    with np.load(JOINT_DATA / f"{name}.npz") as data:
        golden = dict(data)
    write_joint(tmp_path, variant, seed=int(golden["weights_seed"]))
    given = {key: value for key, value in json.loads(str(golden["config"])).items() if key not in _NOT_OURS}
    config = joint_config(tmp_path, **given, noise="reference", strict_step_budget=False, record="none")
    recorder = _Recorder(waypoint_vla.build(config))
    results = [run_trial(TinyEnv(), recorder, Trial(TASK, trial, 0), rollout_settings(config)) for trial in range(2)]
    rates = json.loads(str(golden["results"]))[TASK.name]
    assert [result.success for result in results] == [True, False]
    assert rates["successes"] == 1
    for trial, result in enumerate(results):
        recorded = golden["action"][golden["episode"] == trial]
        assert np.abs(result.trajectory.actions - recorded).max() < 1e-3
        assert np.array_equal(result.trajectory.actions[:, 6], recorded[:, 6])
        for kind, prefix in (("plan", "plan"), ("segment", "seg")):
            steps = [decision.step for decision in result.decisions if decision.kind == kind]
            assert steps == golden[f"{prefix}_step"][golden[f"{prefix}_episode"] == trial].tolist()
    _tracking_agrees(results, golden, config.starts_from_actual)
    _plans_agree(recorder, golden)
    _segments_agree(recorder, golden)


def _tracking_agrees(results: list[EpisodeResult], golden: dict[str, np.ndarray], measured: bool) -> None:
    """Where a segment started at the robot is where the one before it in its plan had ended."""
    segments = [d for result in results for d in result.decisions if d.kind == "segment"]
    assert len(segments) == len(golden["seg_end"])
    compared = 0
    for index, segment in enumerate(segments):
        assert segment.tracking is not None
        assert np.array_equal(segment.tracking.planned_state, golden["seg_end"][index][:7])
        before = segments[index - 1]
        if measured and index and (before.plan_index, before.step < segment.step) == (segment.plan_index, True):
            assert before.tracking is not None
            assert np.abs(before.tracking.reached_state - golden["seg_start"][index][:7]).max() < 1e-4
            compared += 1
    assert compared > 5 or not measured


def _plans_agree(recorder: _Recorder, golden: dict[str, np.ndarray]) -> None:
    assert len(recorder.plans) == len(golden["plan_step"])
    for index, (ready, plan) in enumerate(recorder.plans):
        prompt = golden["plan_prompt"][index]
        assert list(ready.prompt) == prompt[prompt >= 0].tolist()
        ids = BINS300.encode(BINS300.values(plan.waypoints[:, :7], plan.durations))
        assert np.array_equal(ids, golden["plan_tokens"][index])
        assert np.abs(plan.start[:7] - golden["plan_proprio"][index]).max() < 1e-4
        assert _pictures(ready.observation) == golden["plan_pictures"][index].tolist()


def _segments_agree(recorder: _Recorder, golden: dict[str, np.ndarray]) -> None:
    assert len(recorder.segments) == len(recorder.chunks) == len(golden["seg_step"])
    for name, tolerance in (
        ("duration", 0),
        ("prompt", 0),
        ("pictures", 0),
        ("end", 0),
        ("start", 1e-4),  # measured, after actions that rounding has moved
        ("noise_head", 2e-6),
    ):
        ours = np.stack([np.asarray(segment[name]) for segment in recorder.segments])
        assert np.abs(ours - golden[f"seg_{name}"]).max() <= tolerance, name
    assert np.abs(np.stack(recorder.chunks) - golden["seg_actions"]).max() < 1e-3
