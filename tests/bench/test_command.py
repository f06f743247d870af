"""`python -m wpray.bench` and `python -m tests.bench` name their benchmarks."""

from __future__ import annotations

import pytest

from tests.bench import __main__ as of_maintainers
from wpray.bench import __main__ as installed
from wpray.cli.command import run_command


def test_a_benchmark_that_is_not_installed_names_the_command_to_run_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(installed.main, ["scale", "--gpus", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: bench scale is not installed; run it in a clone of wpray: python -m tests.bench scale\n"
    )


def test_help_lists_the_benchmarks_of_a_clone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(of_maintainers.main, ["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m tests.bench scale ")
