"""A dead thread is logged, reported to what relies on it, and found by `check`."""

from __future__ import annotations

import threading

import pytest

from wpray.errors import ThreadDiedError
from wpray.system.threads import WatchedThread


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit("odd"), KeyboardInterrupt("odd")], ids=repr)
def test_a_thread_that_dies_is_found(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        raise error

    told: list[ThreadDiedError] = []
    thread = WatchedThread("worker", work, told.append)
    thread.join(10)
    for _ in range(2):
        with pytest.raises(ThreadDiedError, match=f"the thread worker died: {type(error).__name__}: odd"):
            thread.check()
    assert len(told) == 1
    assert "in work" in caplog.text, "the log has the traceback"


def test_a_thread_that_works_or_has_finished_passes_the_check() -> None:
    gate, told = threading.Event(), list[ThreadDiedError]()
    thread = WatchedThread("worker", lambda: bool(gate.wait(10)) and None, told.append)
    thread.check()
    assert thread.is_alive()
    gate.set()
    thread.join(10)
    assert not thread.is_alive() and not told
    thread.check()
