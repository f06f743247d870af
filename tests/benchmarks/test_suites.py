"""Suite names as people write them, and what follows from a name."""

from __future__ import annotations

import pytest

from wpray.benchmarks.factory import benchmark_of, list_tasks
from wpray.benchmarks.libero.suites import base_of
from wpray.cli.configuration import read_config
from wpray.errors import BadInputError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("LIBERO_Object", "libero_object"),
        ("libero-object", "libero_object"),
        ("LIBERO Goal", "libero_goal"),
        (" libero_spatial ", "libero_spatial"),
        ("libero_long", "libero_10"),
        ("LIBERO-Long", "libero_10"),
        ("libero_10_no_noops", "libero_10"),
        ("libero_long_no_noops", "libero_10"),
        ("libero_long_lan", "libero_10_lan"),
        ("libero_longer", "libero_longer"),
        ("libero_goal_no_noops", "libero_goal"),
        ("fake", "fake"),
    ],
)
def test_a_suite_may_be_written_as_people_say_it(written: str, meant: str) -> None:
    assert read_config(["--policy", "noop", "--task_suite", written]).task_suite == meant


@pytest.mark.parametrize(
    ("suite", "base"),
    [
        ("libero_10", "libero_10"),
        ("libero_100", None),
        ("libero_10_lan", "libero_10"),
        ("libero_object_object", "libero_object"),
        ("libero_mine", None),
    ],
)
def test_a_variant_belongs_to_the_suite_that_it_varies(suite: str, base: str | None) -> None:
    assert base_of(suite) == base


@pytest.mark.parametrize(
    ("suite", "source"),
    [
        ("libero_object", "file_name"),
        ("libero_90", "file_name"),
        ("fake", "file_name"),
        ("libero_object_task", "bddl"),
        ("libero_study_table", "bddl"),
    ],
)
def test_what_auto_means_follows_from_the_suite_and_a_setting_decides(suite: str, source: str) -> None:
    benchmark = benchmark_of(suite)
    assert benchmark.instruction_source(suite, "auto") == source
    assert benchmark.instruction_source(suite, "file_name") == "file_name"
    if suite != "fake":
        assert benchmark.instruction_source(suite, "bddl") == "bddl"


def test_a_suite_without_bddl_files_has_no_such_instructions() -> None:
    with pytest.raises(BadInputError, match="task_suite fake has no BDDL files; use auto"):
        list_tasks("fake", instruction="bddl")
