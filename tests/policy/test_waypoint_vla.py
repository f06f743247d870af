"""The learned policy through the real loop: the reference's recorded rollout, batches, shapes and wrong files."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.tiny_weights import write_checkpoints
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models import synthetic
from wpray.policy import waypoint_vla
from wpray.policy.base import PolicyClient
from wpray.policy.local import LocalPolicyClient
from wpray.policy.waypoint_vla import WaypointVlaPolicy
from wpray.rollout import RolloutSettings, run_trial
from wpray.types import (
    EpisodeResult,
    Observation,
    PlanReply,
    PlanRequest,
    Segment,
    SegmentReply,
    SegmentRequest,
    Task,
    Trial,
)

DATA = Path(__file__).parents[1] / "data" / "rollout"
TINY = {"paligemma_variant": "tiny_2b", "action_expert_variant": "tiny_300m", "task_suite": "libero_object"}
TASK = Task("libero_object", 0, "pick", "pick up the alphabet soup and place it in the basket", 50, 80)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_checkpoints(folder)
    return folder


def _golden_config(checkpoints: Path, **changes: object) -> Config:
    files = {
        "vlm_checkpoint": str(checkpoints / "vlm"),
        "ae_checkpoint": str(checkpoints / "ae"),
        "tokenizer_path": str(DATA / "tokenizer.model"),
        "dataset_statistics_path": str(DATA / "dataset_statistics.json"),
    }
    return Config.model_validate({**TINY, **files, "precision": "float32", "vlm_precision": "float32", **changes})


def _recorded_noise(request: PlanRequest | SegmentRequest, shape: tuple[int, ...]) -> np.ndarray:
    """What the recording drew for its i-th segment."""
    generator = np.random.Generator(np.random.PCG64([0, request.segment_index]))
    return generator.standard_normal((1, *shape)).astype(np.float32)[0]


class _Crowd:
    """A client whose every request is answered in a batch with requests of other trials, at a place that changes."""

    def __init__(self, policy: WaypointVlaPolicy, size: int) -> None:
        self.spec, self._policy, self._rng, self._size = policy.spec, policy, np.random.default_rng(0), size

    def plan(self, request: PlanRequest) -> PlanReply:
        others = [PlanRequest(_trial(i), i, i, _observation(self._rng)) for i in range(self._size - 1)]
        place = int(self._rng.integers(self._size))
        return self._policy.plan([*others[:place], request, *others[place:]])[place]

    def act(self, request: SegmentRequest) -> SegmentReply:
        others = [_segment_request(self._rng, i) for i in range(self._size - 1)]
        place = int(self._rng.integers(self._size))
        return self._policy.act([*others[:place], request, *others[place:]])[place]


def _trial(index: int) -> Trial:
    words = ("open the drawer", "put the wine bottle on top of the cabinet", "turn on the stove")
    return Trial(Task("libero_goal", index % 3, "other", words[index % 3], 50, 300), index, 0)


def _observation(rng: np.random.Generator) -> Observation:
    base, wrist = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    low, high = (np.array(synthetic._PROPRIO[name]) for name in ("q01", "q99"))
    return Observation(rng.uniform(low, high), base, wrist)


def _segment_request(rng: np.random.Generator, index: int) -> SegmentRequest:
    start, end = np.pad(rng.uniform(-1, 1, (2, 8)), ((0, 0), (0, 24))).astype(np.float32)
    return SegmentRequest(_trial(index), index, index, _observation(rng), start, end, int(rng.integers(1, 33)))


@pytest.mark.libero
@pytest.mark.parametrize("beside", [0, 3])
def test_the_recorded_rollout_is_reproduced(checkpoints: Path, beside: int) -> None:
    """The whole protocol on real LIBERO, alone and with other trials in every batch."""
    from wpray.envs.factory import make_environment

    policy = waypoint_vla.build(_golden_config(checkpoints), noise=_recorded_noise)
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
    _saw_the_same(seen, golden, np.stack([state.qpos for state in result.trajectory.states]))


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

    def observe(self, *, images: bool, privileged: bool) -> Observation:
        own: Observation = self._env.observe(images=images, privileged=privileged)  # type: ignore[attr-defined]
        index = len(self.seen)
        self.seen.append(own)
        plans = self._golden["plan_step"].tolist()
        step = int(self._golden["seg_step"][index])
        proprio = self._golden["proprio"][plans.index(step)].astype(np.float64) if step in plans else own.proprio
        return Observation(proprio, self._golden["image_base"][index], self._golden["image_wrist"][index])


def test_a_deterministic_batch_does_not_show_in_the_answers(checkpoints: Path) -> None:
    """The same requests in shuffled batches of 1 to 32: equal to the bit."""
    policy = waypoint_vla.build(_golden_config(checkpoints, batching={"deterministic": True}))
    rng = np.random.default_rng(1)
    plans = [PlanRequest(_trial(i), i, 2 * i, _observation(rng)) for i in range(32)]
    segments = [_segment_request(rng, i) for i in range(32)]
    whole = policy.plan(plans), policy.act(segments)
    for size in (1, 3, 8, 17, 31):
        order = rng.permutation(32)[: size if size == 1 else None]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for row, reply in zip(rows, policy.plan([plans[row] for row in rows]), strict=True):
                assert _bytes(reply) == _bytes(whole[0][row])
            for row, answer in zip(rows, policy.act([segments[row] for row in rows]), strict=True):
                assert answer.segment.actions.tobytes() == whole[1][row].segment.actions.tobytes()


def _bytes(reply: PlanReply) -> tuple[bytes, ...]:
    first = b"" if reply.first is None else reply.first.actions.tobytes()
    return (reply.plan.start.tobytes(), reply.plan.waypoints.tobytes(), reply.plan.durations.tobytes(), first)


def test_a_batch_changes_answers_by_rounding_only(checkpoints: Path) -> None:
    policy = waypoint_vla.build(_golden_config(checkpoints))
    rng = np.random.default_rng(2)
    requests = [_segment_request(rng, i) for i in range(5)]
    together = policy.act(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = policy.act([request])[0]
        assert np.abs(alone.segment.actions - reply.segment.actions).max() < 1e-4


def test_prepared_requests_get_the_same_answers_also_when_asked_again(checkpoints: Path) -> None:
    """Of more requests than there are staging rows, while others come and go; a batch that failed is asked again."""
    policy = waypoint_vla.build(_golden_config(checkpoints, batching={"max_batch_size": 2}))
    rng = np.random.default_rng(4)
    plans = [PlanRequest(_trial(i), i, i, _observation(rng)) for i in range(3)]
    segments = [_segment_request(rng, i) for i in range(3)]
    plain = [_bytes(policy.plan([request])[0]) for request in plans]
    acted = [policy.act([request])[0].segment.actions.tobytes() for request in segments]
    ready_plans, ready_segments = ([policy.prepare(request) for request in some] for some in (plans, segments))
    assert len(policy._staging._free) == 0  # four rows, and two requests have memory of their own
    for _ in range(2):
        policy.prepare(_segment_request(rng, 9))  # its memory is nobody else's
        assert [_bytes(policy.plan([request])[0]) for request in ready_plans] == plain  # type: ignore[list-item]
        assert [
            policy.act([request])[0].segment.actions.tobytes()
            for request in ready_segments  # type: ignore[list-item]
        ] == acted
    del ready_plans, ready_segments
    gc.collect()
    assert len(policy._staging._free) == 4


def test_what_cannot_be_prepared_says_why(checkpoints: Path) -> None:
    policy = waypoint_vla.build(_golden_config(checkpoints))
    seen = _observation(np.random.default_rng(5))
    for observation, reason in (
        (replace(seen, wrist_image=None), "no images"),
        (replace(seen, base_image=seen.base_image[:112]), "not uint8 of"),  # type: ignore[index]
        (replace(seen, proprio=np.full(8, np.nan)), "not finite"),
    ):
        with pytest.raises(ValueError, match=reason):
            policy.prepare(PlanRequest(_trial(0), 0, 0, observation))
    long = replace(_trial(0), task=replace(_trial(0).task, instruction="zyx " * 99))
    with pytest.raises(ValueError, match="tokens"):
        policy.prepare(PlanRequest(long, 0, 0, seen))


@pytest.mark.parametrize(("opened", "executed"), [(0.0, 1), (0.499999, 1), (0.5, 0), (0.500001, -1), (1.0, -1)])
def test_the_gripper_is_never_normalized_and_executed_as_the_protocol_says(
    checkpoints: Path, tmp_path: Path, opened: float, executed: float
) -> None:
    """-sign(2 g - 1): at exactly one half it is the sign of zero."""
    statistics = json.loads((DATA / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    statistics["action"] |= {"q01": [-2.0] * 7, "q99": [6.0] * 7}
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    config = _golden_config(checkpoints, dataset_statistics_path=str(tmp_path / "statistics.json"))
    chunk = np.full((32, 32), 0.25, np.float32)
    chunk[:, 6] = opened
    actions = waypoint_vla.build(config)._executable(chunk)
    assert actions.shape == (32, 7)
    assert (actions[:, :6] == 3.0).all()  # (0.25 + 1) / 2 * 8 - 2
    assert (actions[:, 6] == executed).all()


def test_a_duration_beyond_the_horizon_is_clamped(checkpoints: Path) -> None:
    policy = waypoint_vla.build(_golden_config(checkpoints))
    request = _segment_request(np.random.default_rng(6), 0)
    longest, longer, shorter = (
        policy.act([replace(request, duration=duration)])[0].segment.actions.tobytes() for duration in (32, 33, 31)
    )
    assert longest == longer != shorter


def test_no_batch_is_larger_than_the_environments_are_many(checkpoints: Path) -> None:
    assert waypoint_vla.spec_of(_golden_config(checkpoints)).max_batch_size == 32
    assert waypoint_vla.spec_of(_golden_config(checkpoints, num_parallel=10)).max_batch_size == 10
    assert waypoint_vla.spec_of(_golden_config(checkpoints, ray={"num_env_actors": 400})).max_batch_size == 32


@pytest.fixture(scope="module")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert synthetic.main([str(folder), "--variant", "tiny", "--precision", "float32"]) == 0
    return folder


def test_a_synthetic_folder_is_all_that_a_run_needs(synthetic_folder: Path) -> None:
    config = Config.model_validate(yaml.safe_load((synthetic_folder / "config.yaml").read_text()))
    assert config.policy == "waypoint_vla"
    policy = waypoint_vla.build(config)
    rng = np.random.default_rng(3)
    replies = policy.plan([PlanRequest(_trial(i), 0, 0, _observation(rng)) for i in range(3)])
    for reply in replies:
        assert reply.first is not None
        assert reply.first.actions.shape == (32, 7)
        assert set(reply.first.actions[:, 6]) <= {-1.0, 0.0, 1.0}
        assert ((reply.plan.durations >= 8) & (reply.plan.durations <= 24)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"paligemma_variant": "gemma_2b"}, "paligemma_variant"),
        ({"action_expert_variant": "gemma_300m"}, "action_expert_variant"),
        ({"model_action_dim": 7}, "model_action_dim"),
        ({"horizon_steps": 16}, "horizon_steps"),
        ({"vlm_checkpoint": "nowhere"}, "nowhere"),
        ({"vlm_checkpoint": "{folder}/ae"}, "action_in_proj"),
        ({"ae_checkpoint": "{folder}/vlm"}, "lacks"),
        ({"tokenizer_path": "nowhere"}, "tokenizer_path"),
        ({"dataset_statistics_path": "nowhere"}, "dataset_statistics_path"),
    ],
)
def test_wrong_files_are_one_line(synthetic_folder: Path, changes: dict[str, str], said: str) -> None:
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    filled = {
        name: value.format(folder=synthetic_folder) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    with pytest.raises(BadInputError) as raised:
        waypoint_vla.build(Config.model_validate({**given, **filled}))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_says_what_its_answers_come_from(synthetic_folder: Path) -> None:
    """A run notes their content, and does not go on with others: statistics and tokenizer change answers, too."""
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    names = [str(path.relative_to(synthetic_folder)) for path in waypoint_vla.build(Config.model_validate(given)).files]
    assert names == ["vlm/model.safetensors", "ae/model.safetensors", "dataset_statistics.json", "tokenizer.model"]


def test_real_weights_need_the_real_tokenizer(synthetic_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that is not marked as synthetic is not read with a small vocabulary."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(synthetic_folder, tmp_path / "real")
    file = tmp_path / "real" / "vlm" / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    given = yaml.safe_load((synthetic_folder / "config.yaml").read_text())
    with pytest.raises(BadInputError, match="vocabulary"):
        waypoint_vla.build(Config.model_validate({**given, "vlm_checkpoint": str(tmp_path / "real" / "vlm")}))
