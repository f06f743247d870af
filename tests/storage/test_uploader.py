"""Background uploads: their order, a store that accepts nothing, and when waiting ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.storage.conftest import connect
from wpray.errors import PausedError, RunStoppedError, ThreadDiedError
from wpray.storage import uploader as module
from wpray.storage.store import Store
from wpray.storage.uploader import Uploader


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a folder through fsspec. A file in its place makes it a store that accepts nothing."""
    return connect(f"local://{tmp_path}/store")


@pytest.fixture
def uploader(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploader]:
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(b"x" * number)
    uploader = Uploader(store, tmp_path, lambda: None)
    yield uploader
    uploader.close()


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_everything_arrives_and_nothing_waits(uploader: Uploader, store: Store) -> None:
    for number in range(0, 20, 2):
        uploader.enqueue(str(number), str(number + 1))
    uploader.check()
    uploader.flush()
    assert store.sizes() == {str(number): number for number in range(20)}
    uploader.delete("3")
    uploader.enqueue("was taken back")
    uploader.flush()
    assert len(store.sizes()) == 19


def test_a_store_that_comes_back_gets_everything_in_order(
    uploader: Uploader, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_BEHIND", 5)
    (tmp_path / "store").write_text("in its place")
    upload, released, answered = store.upload, threading.Event(), list[Any]()

    def upload_when_released(*args: Any) -> None:
        released.wait(10)
        answered.append(args)
        upload(*args)

    monkeypatch.setattr(store, "upload", upload_when_released)
    with caplog.at_level(logging.WARNING, "wpray"):
        for number in range(0, 8, 2):
            uploader.enqueue(str(number), str(number + 1))
        uploader.check()
        uploader.enqueue("8", "9")
        assert not answered, "who writes must not wait for the store"
        released.set()
        _until(lambda: caplog.text)
        with pytest.raises(PausedError, match=r"5 episodes wait for local://.*\(.*cannot write"):
            uploader.check()
        (tmp_path / "store").unlink()
        uploader.flush()
    assert len(store.sizes()) == 10
    uploader.check()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, "one line when it begins, one when it ends"
    assert "trying again" in messages[0] and "takes files again" in messages[1]


def test_a_store_that_stays_away_stops_the_run(
    uploader: Uploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    (tmp_path / "store").write_text("in its place")
    uploader.enqueue("1")
    with pytest.raises(RunStoppedError, match=r"1 uploads are open, everything is in .*the same command"):
        uploader.flush(0.5)
    with pytest.raises(RunStoppedError, match="the same command brings it there") as stopped:
        uploader.check()
    assert not isinstance(stopped.value, PausedError)


def test_who_lost_its_place_writes_no_more(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    uploader = Uploader(store, tmp_path, lambda: "process 7 on elsewhere")
    uploader.enqueue("a")
    for ask in (uploader.check, uploader.flush):
        with pytest.raises(RunStoppedError, match=r"another driver \(process 7 on elsewhere\) has taken over"):
            ask()
    uploader.close()
    assert store.sizes() == {}


def test_a_file_that_cannot_be_opened_is_said_and_holds_up_no_other(
    uploader: Uploader, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    (tmp_path / "odd").mkdir()
    for _ in range(7):  # all threads but one
        uploader.enqueue("odd")
    uploader.enqueue("1")
    _until(lambda: "1" in store.sizes())
    with pytest.raises(RunStoppedError, match=r"Is a directory.* 7 uploads are open"):
        uploader.flush(0.5)
    (tmp_path / "odd").rmdir()
    (tmp_path / "odd").write_bytes(b"odd")
    uploader.flush(5)
    assert store.sizes() == {"odd": 3, "1": 1}
    assert "trying again" in caplog.text


def test_a_store_that_says_nothing_at_all_stops_the_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def slow(_: str, path: Path, moved: Callable[[], None]) -> None:
        while not released.wait(0.05):
            if path.name == "slow":
                moved()

    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(store, "upload", slow)
    uploader = Uploader(store, tmp_path, lambda: None)
    uploader.enqueue("slow")
    time.sleep(0.6)
    uploader.check()
    released.set()
    uploader.flush()
    released.clear()
    uploader.enqueue("1")
    with pytest.raises(RunStoppedError, match=r"local://.* takes nothing for 0 s; 1 uploads are open"):
        uploader.flush(0.3)
    released.set()
    uploader.close()


def test_closing_waits_once_for_all_uploads_in_hand(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.3)
    released = threading.Event()
    monkeypatch.setattr(store, "upload", lambda *_: released.wait(10))
    uploader = Uploader(store, tmp_path, lambda: None)
    for _ in range(8):
        uploader.enqueue("stuck")
    _until(lambda: uploader._jobs.empty())
    began = time.monotonic()
    uploader.close()
    assert time.monotonic() - began < 1
    released.set()


@pytest.mark.parametrize("ask", ["check", "flush"])
def test_an_upload_thread_that_dies_stops_the_run(
    ask: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload would never be done, and everybody would wait for it."""

    def die(*_: object) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(store, "upload", die)
    uploader = Uploader(store, tmp_path, lambda: None)
    uploader.enqueue("1")
    _until(lambda: not all(thread.is_alive() for thread in uploader._threads))
    with pytest.raises(RunStoppedError, match=r"uploader-\d died: KeyError: 'a mistake of ours'; everything is in"):
        getattr(uploader, ask)()
    uploader.close()


def test_a_place_that_nobody_keeps_any_more_stops_the_run(store: Store, tmp_path: Path) -> None:
    def unknown() -> None:
        raise ThreadDiedError("the thread lease died")

    uploader = Uploader(store, tmp_path, unknown)
    with pytest.raises(RunStoppedError, match="the thread lease died; everything is in"):
        uploader.check()
    uploader.close()
