"""Suite name -> tasks and environment: real LIBERO, or the fake one for tests and benchmarks of the harness."""

from __future__ import annotations

from typing import Literal

from wpray.benchmarks.base import Environment
from wpray.benchmarks.suites import FAKE_SUITE as FAKE_SUITE
from wpray.benchmarks.suites import InstructionSource
from wpray.errors import BadInputError
from wpray.types import Task


def list_tasks(
    suite: str, max_steps: int | None = None, instruction: InstructionSource | None = None
) -> tuple[Task, ...]:
    """Return the tasks of `suite`, with instructions from `instruction` (None: as `env.instruction` auto decides).

    Raises BadInputError for a suite that does not exist or lacks what is asked for.
    """
    if suite == FAKE_SUITE:
        if instruction == "bddl":
            raise BadInputError(f"env.instruction: bddl: task_suite {FAKE_SUITE} has no BDDL files; use auto")
        from wpray.benchmarks.fake import fake_tasks

        return fake_tasks(max_steps)
    from wpray.benchmarks.libero.tasks import list_tasks as libero_tasks

    return libero_tasks(suite, max_steps, instruction)


def make_environment(suite: str, protocol: Literal["wpray", "serial"]) -> Environment:
    """An environment for the tasks of `suite`. Imports MuJoCo only if it is a real one."""
    if suite == FAKE_SUITE:
        from wpray.benchmarks.fake import FakeEnvironment

        return FakeEnvironment()
    from wpray.benchmarks.libero.environment import LiberoEnvironment

    return LiberoEnvironment(protocol)
