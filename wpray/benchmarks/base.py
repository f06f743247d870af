"""The environment protocol: what an episode needs of a simulator.

One conformance suite (tests/benchmarks) runs against every implementation, fake and real.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wpray.types import (
    FloatArray,
    ImageArray,
    Observation,
    ObservationSpec,
    SceneState,
    SimState,
    Step,
    Task,
    Trial,
)


class Environment(Protocol):
    """One simulated robot cell in one process. Not thread-safe.

    Order of calls: `load` once per task (slow: compiles the scene), then per trial `reset` and `step`s.
    The outcome of a trial depends on the trial alone, not on what the process ran before.
    """

    render_s: float  # seconds spent rendering since the last reset

    def load(self, task: Task) -> None:
        """Makes `task` the current one; returns at once if it already is."""

    def reset(self, trial: Trial) -> None:
        """Brings the scene to the start of `trial` (seeded reset, then its initial state); no step is taken."""

    def step(self, action: FloatArray) -> Step:
        """Execute one control step of `action` (7,) and return what it led to. Never render.

        `Step.terminated`: the task is solved. `Step.truncated`: the episode is over and the task is not solved.
        """

    def observe(self, spec: ObservationSpec) -> Observation:
        """Return what a policy sees now, after `reset` or the last `step`. Render the cameras of `spec` and no others.

        `spec` names cameras and proprio fields that the benchmark's own specification has.
        """

    def state(self) -> SimState:
        """The state after the last step, for recording."""

    def scene(self) -> SceneState:
        """What the last reset decided."""

    def render(self, state: SimState, scene: SceneState, *, camera: str, height: int, width: int) -> ImageArray:
        """(height, width, 3) uint8, upright: the image of a recorded state, pixel-identical to inline rendering."""

    def close(self) -> None:
        """Frees the simulator."""


NOOP_ACTION: FloatArray = np.zeros(7)
NOOP_ACTION.setflags(write=False)
