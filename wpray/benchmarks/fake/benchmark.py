"""The fake benchmark: its description, without the environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wpray.benchmarks.base import Benchmark, DecisivePackage, InstructionSource, ResetProtocol, SuiteSize
from wpray.errors import BadInputError

if TYPE_CHECKING:
    from wpray.benchmarks.base import Drawer, Environment
    from wpray.types import ObservationSpec, StateColumn, Task

_MEMORY = 200 * 2**20


class FakeBenchmark(Benchmark):
    """Ten tasks that the scripted policy solves; needs no simulator and no OpenGL."""

    cameras = video_cameras = ("agentview", "robot0_eye_in_hand")  # any name would do
    robot = "panda"
    control_hz = 20
    solved_by = ("fake", "scripted")
    stand_in = takes_own_states = draws_remotely = True

    def tasks(self, suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
        """Return the tasks of the one suite. Raises BadInputError for another."""
        from wpray.benchmarks.fake.environment import fake_tasks

        if suite != "fake":
            raise BadInputError(f"task_suite: the fake benchmark has no suite {suite!r}; use fake")
        return fake_tasks(max_steps)

    def make_environment(self, suite: str, protocol: ResetProtocol) -> Environment:
        """Return the point mass; both protocols are the same here."""
        from wpray.benchmarks.fake.environment import FakeEnvironment

        return FakeEnvironment()

    def make_drawer(self) -> Drawer:
        """Return a drawer of the point mass's flat pictures."""
        from wpray.benchmarks.fake.drawing import FakeDrawer

        return FakeDrawer()

    def observation_spec(self, suite: str) -> ObservationSpec:
        """Return two cameras, the usual proprio, and where the objects are."""
        from wpray.benchmarks.fake.environment import OBSERVATION

        return OBSERVATION

    def state_columns(self) -> tuple[StateColumn, ...]:
        """Return those of an arm in MuJoCo, which the hand and the cube imitate."""
        from wpray.types import ARM_COLUMNS

        return ARM_COLUMNS

    def env_memory(self, configured: int) -> int:
        """Return what a process takes, whatever is configured for a simulator."""
        return _MEMORY

    def size(self, suite: str) -> SuiteSize:
        """Return the ten tasks and their limit."""
        return SuiteSize(tasks=10, max_steps=300)

    def decisive_packages(self, suites: Sequence[str]) -> Iterator[DecisivePackage]:
        """Yield none, because this package's version identifies the benchmark."""
        return iter(())
