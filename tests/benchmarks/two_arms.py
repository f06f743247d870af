"""A benchmark unlike LIBERO: two arms of seven joints, 14 numbers an action with bounds of their own, one camera."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wpray.benchmarks.base import Benchmark, InstructionSource, ResetProtocol
from wpray.benchmarks.views import policy_view
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.trials import reset_seed
from wpray.types import (
    ActionSpec,
    ChunkReply,
    ChunkRequest,
    FloatArray,
    ImageArray,
    ImageSpec,
    Observation,
    ObservationSpec,
    State,
    StateColumn,
    Step,
    Task,
    Trial,
)

JOINTS = 14
REST = tuple(0.1 * number for number in range(JOINTS))  # where the joints are at the start
ACTION = ActionSpec(
    JOINTS,
    control="joint",
    rotation="none",
    gripper="none",
    low=-2.0,
    high=tuple(2.0 + number for number in range(JOINTS)),
    still=REST,
    names=tuple(f"{side}{number}" for side in ("left", "right") for number in range(1, 8)),
)
CAMERA = ImageSpec(32, 48, rotated=False)


class TwoArms(Benchmark):
    """All joints must come near their goals."""

    cameras = video_cameras = ("top",)
    packages: ClassVar[Mapping[str, tuple[str, ...]]] = {"PIL": ("pillow",)}
    robot, control_hz = "aloha", 50

    def tasks(self, suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
        """Return the only task."""
        if suite != "two_arms":
            raise BadInputError(f"task_suite: no suite {suite!r}; use two_arms")
        return (Task(suite, 0, "come_together", "come together", num_trials=20, max_steps=max_steps or 30),)

    def observation_spec(self, suite: str) -> ObservationSpec:
        """Return one camera and the joints."""
        return ObservationSpec({"top": CAMERA}, proprio=("joints", "speeds"))

    def action_spec(self, suite: str) -> ActionSpec:
        """Return targets of the joints."""
        return ACTION

    def state_columns(self) -> tuple[StateColumn, ...]:
        """Return the joints, and the goals with `record: full` only."""
        goals = StateColumn("goals", "where the joints must come", "rad", JOINTS, record="full", dtype="float32")
        return (StateColumn("joints", "angles of all joints", "rad"), goals)

    def make_environment(self, suite: str, protocol: ResetProtocol) -> Any:
        """Return the arms."""
        return Arms()


class Arms:
    """Joints that go halfway to their targets in a step."""

    render_s = 0.0

    def load(self, task: Task) -> None: ...

    def reset(self, trial: Trial) -> None:
        self.render_s = 0.0
        self.joints, self.speeds = np.array(REST), np.zeros(JOINTS)
        self.goals = np.random.default_rng(reset_seed(trial)).uniform(-1, 1, JOINTS).astype(np.float32)

    def step(self, action: FloatArray) -> Step:
        self.speeds = (np.asarray(action) - self.joints) / 2
        self.joints = self.joints + self.speeds
        distance = float(np.abs(self.joints - self.goals).max())
        return Step(distance < 0.05, reward=-distance, progress={"distance_rad": distance})

    def observe(self, spec: ObservationSpec) -> Observation:
        began = time.perf_counter()
        views = {
            role: policy_view(_picture(self.joints, CAMERA.height, CAMERA.width), view)
            for role, view in spec.cameras.items()
        }
        self.render_s += time.perf_counter() - began if views else 0.0
        fields = {"joints": self.joints, "speeds": self.speeds}
        return Observation(np.concatenate([fields[name] for name in spec.proprio]), views)

    def state(self) -> State:
        return {"joints": self.joints.copy(), "goals": self.goals.copy()}

    def scene(self) -> None: ...

    def render(self, state: State, scene: None, *, camera: str, height: int, width: int) -> ImageArray:
        return _picture(state["joints"], height, width)[::-1]

    def close(self) -> None: ...


def _picture(joints: FloatArray, height: int, width: int) -> ImageArray:
    shades = np.clip(128 + 60 * joints[:3], 0, 255).astype(np.uint8)
    return np.broadcast_to(shades, (height, width, 3)).copy()


class Reacher:
    """Chunk policy that repeats what it sees of the joints, a little farther."""

    spec = PolicySpec(
        "reacher",
        images=True,
        privileged=False,
        num_gpus=0,
        max_batch_size=4,
        kind="chunk",
        execute_steps=5,
        cameras={"top": ImageSpec(16, 16, rotated=False)},
        proprio=("joints",),
        action=ActionSpec(JOINTS, control="joint", rotation="none", gripper="none"),
    )

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return ten actions for each request."""
        return [ChunkReply(np.tile(0.9 * request.observation.proprio, (10, 1))) for request in requests]
