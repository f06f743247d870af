"""LIBERO-plus: its description, without the simulator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wpray.benchmarks.base import BenchmarkCheck, InstructionSetting, InstructionSource, ResetProtocol, SuiteSize
from wpray.benchmarks.libero.benchmark import LiberoBenchmark
from wpray.benchmarks.libero.files import decisive_packages
from wpray.benchmarks.libero.suites import BASE_STEPS
from wpray.benchmarks.libero_plus import suites as suites_by_name

if TYPE_CHECKING:
    from wpray.benchmarks.base import DecisivePackage, Drawer, Environment, Grades
    from wpray.types import Task

_LARGEST_SUITE = 450


class LiberoPlusBenchmark(LiberoBenchmark):
    """LIBERO-plus's variants, a suite for each of LIBERO's suites and each category of perturbation."""

    solved_by = None

    def tasks(self, suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
        """Return the variants of one category, a task each, in the package's order."""
        from wpray.benchmarks.libero_plus.tasks import list_tasks

        return list_tasks(suite, max_steps, instruction)

    def make_environment(self, suite: str, protocol: ResetProtocol) -> Environment:
        """Return an environment that perturbs as the package does. Imports MuJoCo."""
        from wpray.benchmarks.libero_plus.environment import LiberoPlusEnvironment

        return LiberoPlusEnvironment(protocol)

    def make_drawer(self) -> Drawer:
        """Return a drawer that finds LIBERO-plus's assets, too."""
        from wpray.benchmarks.libero.drawing import LiberoDrawer
        from wpray.benchmarks.libero_plus.own_scenes import asset_roots

        return LiberoDrawer(asset_roots())

    def canonical(self, suite: str) -> str:
        """Return libero_plus_goal_camera for that name and for libero_goal_camera."""
        return suites_by_name.canonical(suite)

    def expanded(self, names: Sequence[str]) -> list[str]:
        """Return the suites, with those of groups such as libero_plus:camera or libero_goal in the group's place."""
        return suites_by_name.expanded(names)

    def group_name(self, suites: Sequence[str]) -> str:
        """Return the group's name, or all names joined."""
        return suites_by_name.group_name(suites)

    def variation_of(self, suite: str) -> tuple[str, str] | None:
        """Return (libero_goal, camera) of libero_plus_goal_camera."""
        base, category = suites_by_name.split(suite)
        return (base, category) if base and category else None

    def grades(self, tasks: Sequence[Task]) -> Grades:
        """Return the levels of the authors' classification, else those that the variants' names state."""
        from wpray.benchmarks.libero_plus.grades import grades_of

        return grades_of(tasks)

    def instruction_source(self, suite: str, setting: InstructionSetting) -> InstructionSource:
        """Return the BDDL's words for rewritten instructions, the base task's for all others, or as `setting` says."""
        if setting != "auto":
            return setting
        return "bddl" if suites_by_name.split(suite)[1] == "language" else "base_file_name"

    def size(self, suite: str) -> SuiteSize:
        """Return the size of the largest suite, and the limit of LIBERO's suite."""
        return SuiteSize(_LARGEST_SUITE, BASE_STEPS.get(str(suites_by_name.split(suite)[0]), 300))

    def checks(self) -> tuple[BenchmarkCheck, ...]:
        """Return the checks of LIBERO, and of this package in place of LIBERO's suites."""
        from wpray.benchmarks.libero_plus.doctor import CHECKS

        return CHECKS

    def decisive_packages(self, suites: Sequence[str]) -> Iterator[DecisivePackage]:
        """Yield MuJoCo, robosuite, bddl, LIBERO and this package, with the files of the suites that are varied."""
        from wpray.benchmarks.libero_plus.own_scenes import decisive_assets
        from wpray.benchmarks.libero_plus.package import decisive_package

        categories = {suites_by_name.split(suite)[1] for suite in suites}
        bases = {base for suite in suites if (base := suites_by_name.split(suite)[0])}
        yield from decisive_packages(bases)
        yield from decisive_package(bases)
        if not categories <= {None, *suites_by_name.OF_BASE_ASSETS}:
            yield from decisive_assets()
