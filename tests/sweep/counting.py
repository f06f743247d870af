"""The fake benchmark, with a line in a file for each scene that an environment has to compile."""

from __future__ import annotations

import os
from pathlib import Path

from wpray.benchmarks.base import Environment, ResetProtocol
from wpray.benchmarks.fake.benchmark import FakeBenchmark
from wpray.benchmarks.fake.environment import FakeEnvironment
from wpray.types import Task


class Counting(FakeBenchmark):
    def make_environment(self, suite: str, protocol: ResetProtocol) -> Environment:
        return CountingEnvironment()


class CountingEnvironment(FakeEnvironment):
    def load(self, task: Task) -> None:
        if self._task != task:
            with Path(os.environ["WPRAY_TEST_COMPILES"]).open("a") as file:
                file.write(f"{os.getpid()} {task.task_id}\n")
        super().load(task)
