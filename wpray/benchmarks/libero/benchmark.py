"""LIBERO: its description, without the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from wpray.benchmarks.base import (
    Benchmark,
    BenchmarkCheck,
    InstructionSetting,
    InstructionSource,
    ResetProtocol,
    SuiteSize,
)
from wpray.benchmarks.libero import suites as suites_by_name
from wpray.benchmarks.libero.files import LIBEROS, decisive_packages
from wpray.benchmarks.libero.observed import CAMERA_SIZE, CAMERAS, CONTROL_HZ, PROPRIO, SCENE_CAMERAS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wpray.benchmarks.base import DecisivePackage, Drawer, Environment
    from wpray.types import ObservationSpec, StateColumn, Task


class LiberoBenchmark(Benchmark):
    """The suites of the installed LIBERO package, LIBERO-PRO's variants included."""

    cameras = SCENE_CAMERAS
    video_cameras = tuple(CAMERAS.values())
    robot = "panda"
    other_names = suites_by_name.OTHER_NAMES
    control_hz = CONTROL_HZ
    uses_opengl = takes_own_states = draws_remotely = turns_pictures = True
    packages: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mujoco": ("mujoco",),
        "robosuite": ("robosuite",),
        "libero": LIBEROS,
    }
    solved_by: ClassVar[tuple[str, str] | None] = ("libero_object", "scripted")

    def tasks(self, suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
        """Return the tasks as the installed package lists them."""
        from wpray.benchmarks.libero.tasks import list_tasks

        return list_tasks(suite, max_steps, instruction)

    def make_environment(self, suite: str, protocol: ResetProtocol) -> Environment:
        """Return an environment that is bit-identical to stock's. Imports MuJoCo."""
        from wpray.benchmarks.libero.environment import LiberoEnvironment

        return LiberoEnvironment(protocol)

    def make_drawer(self) -> Drawer:
        """Return a drawer of scenes. Imports MuJoCo and makes a GL context; needs LIBERO's assets and no code of it."""
        from wpray.benchmarks.libero.drawing import LiberoDrawer
        from wpray.benchmarks.libero.imports import asset_roots

        return LiberoDrawer(asset_roots())

    def canonical(self, suite: str) -> str:
        """Return the name under which LIBERO registers the suite: libero_long is libero_10."""
        return suites_by_name.canonical(suite)

    def expanded(self, names: Sequence[str]) -> list[str]:
        """Return the suites, with those of libero_all, libero_pro or libero_pro:AXIS in the group's place."""
        return suites_by_name.expanded(names)

    def group_name(self, suites: Sequence[str]) -> str:
        """Return the group's name, or all names joined."""
        return suites_by_name.group_name(suites)

    def variation_of(self, suite: str) -> tuple[str, str] | None:
        """Return (libero_goal, lan) of libero_goal_lan."""
        return suites_by_name.axis_of(suite)

    def fits_data_set(self, suite: str, data_set: str) -> bool:
        """Return True if the name is the suite's, its base suite's, or that of a mixture of LIBERO suites."""
        return suites_by_name.fits_data_set(suite, data_set)

    def instruction_source(self, suite: str, setting: InstructionSetting) -> InstructionSource:
        """Return the file names' words for LIBERO's own suites, the BDDL's for all others, or as `setting` says."""
        return suites_by_name.instruction_source(suite, setting)

    def observation_spec(self, suite: str) -> ObservationSpec:
        """Return the scene's and the wrist's camera at stock's size, and what stock's observables say of the robot."""
        from wpray.types import ImageSpec, ObservationSpec

        native = ImageSpec(CAMERA_SIZE, CAMERA_SIZE, rotated=False)
        return ObservationSpec(dict.fromkeys(CAMERAS, native), PROPRIO, privileged=True)

    def state_columns(self) -> tuple[StateColumn, ...]:
        """Return those of an arm in MuJoCo."""
        from wpray.types import ARM_COLUMNS

        return ARM_COLUMNS

    def size(self, suite: str) -> SuiteSize:
        """Return the tasks and the limit of LIBERO's own suite that `suite` is or varies."""
        limit = suites_by_name.BASE_STEPS.get(suites_by_name.base_of(suite) or "", 300)
        return SuiteSize(tasks=90 if suite == "libero_90" else 10, max_steps=limit)

    def checks(self) -> tuple[BenchmarkCheck, ...]:
        """Return the checks of the package, its files, its tasks, and of MuJoCo by what it computes."""
        from wpray.benchmarks.libero.doctor import CHECKS

        return CHECKS

    def decisive_packages(self, suites: Sequence[str]) -> Iterator[DecisivePackage]:
        """Yield MuJoCo, robosuite and bddl, and of LIBERO its code, its assets and the files of `suites`."""
        return decisive_packages(suites)
