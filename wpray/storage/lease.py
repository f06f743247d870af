"""Lease that admits one driver at a time to a store.

Stores have no locks, so a driver keeps rewriting a file there while it lives.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from wpray.errors import BadInputError
from wpray.storage.store import Store, StoreError
from wpray.system.threads import WatchedThread

NAME = ".lease.json"
LASTS_S = 60.0  # a driver that died elsewhere keeps the lease this long after its last heartbeat
_BEAT_S = 10.0
_SETTLE_S = 1.0  # pause after which, of two drivers that start together, the one that wrote last gets the lease


@dataclass(frozen=True, slots=True)
class _Holder:
    """Driver that holds the lease, as the file names it."""

    id: str
    host: str
    pid: int
    machine: str  # where `pid` is valid
    beat_at: str  # UTC by the holder's clock, for stores without modification times


class Lease:
    """Right to write to a store. Its methods raise StoreError when the store fails."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._id = secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread: WatchedThread | None = None
        self._taken_by: str | None = None

    @property
    def taken_by(self) -> str | None:
        """The driver that has taken over, if any. Raises ThreadDiedError if the lease is no longer refreshed."""
        if self._thread is not None:
            self._thread.check()
        return self._taken_by

    def take(self) -> None:
        """Take the lease. Raise BadInputError while another driver holds it."""
        now = self._store.check()
        holder = self._read()
        if holder is not None and not _is_dead_here(holder):
            left = LASTS_S - self._age_s(holder, now)
            if left > 0:
                raise BadInputError(
                    f"output_dir: another driver ({_who(holder)}) is writing to {self._store.url}; wait or choose "
                    f"another (should it have died, its place is free in {left:.0f} s)"
                )
        self._write()
        time.sleep(_SETTLE_S)
        holder = self._read()
        if holder is None or holder.id != self._id:
            who = "unknown" if holder is None else _who(holder)
            raise BadInputError(f"output_dir: another driver ({who}) began at once on {self._store.url}; wait")
        self._thread = WatchedThread("lease", self._keep_fresh)

    def give_back(self) -> None:
        """Release the lease. If the store cannot delete the file, the lease expires by itself."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(timeout=LASTS_S)
        if self._taken_by is None:
            try:
                self._store.delete(NAME)
            except StoreError:
                return

    def _keep_fresh(self) -> None:
        while not self._ended.wait(_BEAT_S):
            try:
                holder = self._read()
                if holder is not None and holder.id != self._id:
                    self._taken_by = _who(holder)
                    return
                self._write()
            except StoreError:
                continue  # the uploads report the failure; the lease lasts until another driver takes it

    def _read(self) -> _Holder | None:
        data = self._store.read(NAME)
        try:
            return None if data is None else _Holder(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None

    def _write(self) -> None:
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        holder = _Holder(self._id, socket.gethostname(), os.getpid(), _machine(), moment)
        self._store.write(NAME, json.dumps(asdict(holder)).encode())

    def _age_s(self, holder: _Holder, now: datetime | None) -> float:
        """Return seconds since the last heartbeat, by the store's clock or else by the two machines' clocks."""
        written = self._store.modified(NAME)
        if now is not None and written is not None:
            return (now - written).total_seconds()
        try:
            return (datetime.now(UTC) - datetime.fromisoformat(holder.beat_at)).total_seconds()
        except (ValueError, TypeError):
            return LASTS_S


def _is_dead_here(holder: _Holder) -> bool:
    if holder.machine != _machine():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError, TypeError):
        return False
    return False


def _machine() -> str:
    """Return a name for this machine, valid until it reboots, and for the container that numbers its processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else "", os.readlink(space) if space.exists() else ""]
    return ":".join([socket.gethostname(), *parts])


def _who(holder: _Holder) -> str:
    return f"process {holder.pid} on {holder.host}"
