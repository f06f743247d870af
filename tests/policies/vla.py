"""What tests of the learned policy share: tiny checkpoints' configuration, and requests with random content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wpray.config import Config
from wpray.models import synthetic
from wpray.types import Observation, PlanReply, SegmentRequest, Task, Trial

DATA = Path(__file__).parents[1] / "data" / "rollout"
JOINT_DATA = Path(__file__).parents[1] / "data" / "golden_joint"
TINY = {"paligemma_variant": "tiny_2b", "action_expert_variant": "tiny_300m", "task_suite": "libero_object"}


def golden_config(checkpoints: Path, **changes: object) -> Config:
    """With batches as they come: where no answer may depend on its batch, a CPU takes requests one by one."""
    files = {
        "vlm_checkpoint": str(checkpoints / "vlm"),
        "ae_checkpoint": str(checkpoints / "ae"),
        "tokenizer_path": str(DATA / "tokenizer.model"),
        "dataset_statistics_path": str(DATA / "dataset_statistics.json"),
    }
    precisions = {"precision": "float32", "vlm_precision": "float32"}
    changes["batching"] = {"deterministic": False, **changes.get("batching", {})}  # type: ignore[dict-item]
    return Config.model_validate({**TINY, **files, **precisions, **changes})


def joint_config(checkpoint: Path, **changes: object) -> Config:
    """Of a joint checkpoint with the newer tokens; batches as in `golden_config`."""
    files = {
        "joint_checkpoint": str(checkpoint),
        "tokenizer_path": str(DATA / "tokenizer.model"),
        "dataset_statistics_path": str(JOINT_DATA / "dataset_statistics.json"),
    }
    changes["batching"] = {"deterministic": False, **changes.get("batching", {})}  # type: ignore[dict-item]
    return Config.model_validate({**TINY, **files, "precision": "float32", **changes})


def trial(index: int) -> Trial:
    words = ("open the drawer", "put the wine bottle on top of the cabinet", "turn on the stove")
    return Trial(Task("libero_goal", index % 3, "other", words[index % 3], 50, 300), index, 0)


def observation(rng: np.random.Generator) -> Observation:
    base, wrist = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    low, high = (np.array(synthetic._PROPRIO[name]) for name in ("q01", "q99"))
    return Observation(rng.uniform(low, high), {"base": base, "wrist": wrist})


def segment_request(rng: np.random.Generator, index: int) -> SegmentRequest:
    start, end = np.pad(rng.uniform(-1, 1, (2, 8)), ((0, 0), (0, 24))).astype(np.float32)
    return SegmentRequest(trial(index), index, index, observation(rng), start, end, int(rng.integers(1, 33)))


def reply_bytes(reply: PlanReply) -> tuple[bytes, ...]:
    first = b"" if reply.first is None else reply.first.actions.tobytes()
    return (reply.plan.start.tobytes(), reply.plan.waypoints.tobytes(), reply.plan.durations.tobytes(), first)
