"""One driver at a time: fresh leases refuse, stale ones expire, and a driver that loses its lease notices."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from wpray.errors import BadInputError, ThreadDiedError
from wpray.storage import lease
from wpray.storage.lease import NAME, Lease
from wpray.storage.store import Store

pytestmark = pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)  # one store with a clock, one without


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the lease from a minute to seconds; S3 reports times to the second."""
    monkeypatch.setattr(lease, "LASTS_S", 3.0)
    monkeypatch.setattr(lease, "_BEAT_S", 0.2)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)


@pytest.fixture
def first(store: Store) -> Iterator[Lease]:
    first = Lease(store)
    first.take()
    yield first
    first.give_back()


def _forge(store: Store, **changes: object) -> None:
    data = store.read(NAME)
    assert data is not None
    store.write(NAME, json.dumps(json.loads(data) | changes).encode())


def _dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_second_driver_is_refused_as_long_as_the_first_lives(store: Store, first: Lease) -> None:
    for _ in range(2):
        with pytest.raises(BadInputError, match=r"another driver \(process \d+ on .*\) is writing to .*wait or choose"):
            Lease(store).take()
        time.sleep(1.7)  # longer in all than a lease without heartbeats lasts
    assert first.taken_by is None
    first.give_back()
    assert store.read(NAME) is None
    second = Lease(store)
    second.take()
    second.give_back()


def test_who_died_on_another_machine_holds_it_for_a_stated_time(store: Store) -> None:
    dead = Lease(store)
    dead._write()
    _forge(store, machine="another", pid=1)
    began = time.monotonic()
    while True:
        try:
            (second := Lease(store)).take()
            break
        except BadInputError as error:
            assert "its place is free in" in str(error)
            time.sleep(0.2)
    assert 1.5 < time.monotonic() - began < 5.5
    second.give_back()


def test_who_died_on_this_machine_holds_nothing(store: Store) -> None:
    Lease(store)._write()
    _forge(store, pid=_dead_pid())
    second = Lease(store)
    second.take()
    second.give_back()


def test_who_lost_its_place_notices_and_leaves_the_other_s_lease(store: Store, first: Lease) -> None:
    _forge(store, id="other", pid=7, host="elsewhere")
    deadline = time.monotonic() + 5
    while first.taken_by is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.taken_by == "process 7 on elsewhere"
    first.give_back()
    assert b"elsewhere" in (store.read(NAME) or b"")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"id": 1}'])
def test_a_lease_that_is_none_holds_nobody(store: Store, data: bytes) -> None:
    store.write(NAME, data)
    lease = Lease(store)
    lease.take()
    lease.give_back()


def test_a_lease_that_nobody_keeps_any_more_is_no_secret(
    store: Store, first: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver could take the place, and both would write."""

    def die() -> None:
        raise KeyError("a mistake of ours")

    assert first.taken_by is None
    monkeypatch.setattr(first, "_read", die)
    deadline = time.monotonic() + 5
    with pytest.raises(ThreadDiedError, match="the thread lease died: KeyError"):
        while time.monotonic() < deadline:
            assert first.taken_by is None
            time.sleep(0.05)
    first.give_back()
    assert store.read(NAME) is None
