"""Every end of a command: one line and an exit code."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import pytest

from wpray.cli.command import run_command


def test_a_command_that_is_terminated_ends_as_one_that_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def main(argv: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
            return 0
        finally:
            cleaned.append(True)

    assert run_command(main, []) == 130
    assert cleaned and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
