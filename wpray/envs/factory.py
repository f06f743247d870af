"""Suite name -> tasks and environment: real LIBERO, or the fake one for tests and benchmarks of the harness."""

from __future__ import annotations

from typing import Literal

from wpray.envs.base import Environment
from wpray.types import Task

FAKE_SUITE = "fake"


def list_tasks(suite: str, max_steps: int | None = None) -> tuple[Task, ...]:
    """The tasks of `suite`. Raises BadInputError for a suite that does not exist."""
    if suite == FAKE_SUITE:
        from wpray.envs.fake import fake_tasks

        return fake_tasks(max_steps)
    from wpray.envs.tasks import list_tasks as libero_tasks

    return libero_tasks(suite, max_steps)


def make_environment(suite: str, protocol: Literal["wpray", "serial"]) -> Environment:
    """An environment for the tasks of `suite`. Imports MuJoCo only if it is a real one."""
    if suite == FAKE_SUITE:
        from wpray.envs.fake import FakeEnvironment

        return FakeEnvironment()
    from wpray.envs.libero import LiberoEnvironment

    return LiberoEnvironment(protocol)
