"""Every configuration file that is shipped is a test case."""

from __future__ import annotations

from pathlib import Path

import pytest

from wpray.benchmarks.factory import group_name
from wpray.cli.configuration import read_config
from wpray.config import Config
from wpray.errors import BadInputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid(path: Path) -> None:
    config = read_config(["--config", str(path)])
    assert group_name(config.suites) in path.read_text()


def test_there_is_one_for_each_suite_and_the_quickstart_is_the_default() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "libero_object",
        "libero_spatial",
        "libero_goal",
        "libero_10",
        "libero_90",
        "quickstart",
        "cluster",
    }
    quickstart = next(path for path in CONFIGS if path.stem == "quickstart")
    assert read_config(["--config", str(quickstart)]) == Config()


@pytest.mark.libero
def test_a_suite_of_the_package_without_a_known_step_limit_needs_one_in_the_config() -> None:
    from wpray.benchmarks.factory import list_tasks

    config = read_config(["--task_suite", "libero_study_table", "--policy", "noop", "--env.max_steps", "280"])
    assert len(list_tasks(config.task_suite, config.env.max_steps)) == 5
    with pytest.raises(BadInputError, match=r"set env\.max_steps"):
        list_tasks("libero_study_table")
